"""The native library: compiled once for a source and a compiler, whole or not at all."""

from __future__ import annotations

import ctypes
import os
import re

import pytest

from tests.support.mini_sdist import HOST
from vendor.native import build_native, source_path, source_text
from vendor.report import BuildError

SOURCE = """
#ifdef KQ_DISPATCH
extern "C" int answer() { return 42; }
#else
extern "C" int KQ_ENTRY() { return 1; }
#endif
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "native.cpp"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def env(tmp_path):
    return {"PATH": os.environ["PATH"], "DECANT_CACHE": str(tmp_path / "cache")}


def test_the_library_is_compiled_once(source, env):
    events = []

    first = build_native(env=env, host=HOST, source=source, report=events.append)
    again = build_native(env=env, host=HOST, source=source, report=events.append)

    assert again == first
    assert [event.stage for event in events] == ["compile"]
    assert ctypes.CDLL(str(first.path)).answer() == 42


def test_another_source_has_another_place(source, env):
    first = build_native(env=env, host=HOST, source=source)
    source.write_text(SOURCE.replace("42", "43"))

    assert build_native(env=env, host=HOST, source=source).key != first.key


def test_a_source_that_does_not_compile_leaves_nothing_but_its_log(source, env, tmp_path):
    source.write_text("this is no C++")

    with pytest.raises(BuildError, match=r"compiling decant's K-quants.*ended with exit code"):
        build_native(env=env, host=HOST, source=source)

    (left,) = (tmp_path / "cache" / "kquants").iterdir()
    assert left.suffix == ".log"


def test_without_a_compiler_an_earlier_library_will_do(source, env):
    first = build_native(env=env, host=HOST, source=source)

    assert build_native(env={**env, "PATH": "/nowhere"}, host=HOST, source=source) == first
    source.write_text(SOURCE.replace("42", "43"))
    with pytest.raises(BuildError, match="none runs here"):
        build_native(env={**env, "PATH": "/nowhere"}, host=HOST, source=source)


def test_the_source_is_found_from_the_checkout():
    assert source_path().name == "kquants.cpp"


def test_a_part_of_the_source_counts_as_the_source(source, env):
    part = source.with_name("part.h")
    part.write_text("#pragma once\n" + SOURCE)
    source.write_text('#include "part.h"\n')
    first = build_native(env=env, host=HOST, source=source)
    part.write_text(SOURCE.replace("42", "43"))

    assert build_native(env=env, host=HOST, source=source).key != first.key
    assert source_text(source).strip() == SOURCE.replace("42", "43").strip()


def test_every_part_is_short_and_included():
    folder = source_path().parent
    included = set(re.findall(r'#include "(.*)"', source_path().read_text()))

    assert included == {path.name for path in folder.glob("*.h")}
    assert all(len(path.read_text().splitlines()) <= 400 for path in folder.iterdir())
