from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.mini_sdist import Events, FakeIndex, Mini, program
from vendor.buildtools import find_buildtools
from vendor.recipe import BuildTool
from vendor.report import BuildError


def wheel(name: str, version: str) -> bytes:
    """A wheel whose program, placed as cmake's wheels place it, says its version."""
    info = f"{name}-{version}.dist-info"
    script = f"#!/bin/sh\necho {name} version {version}\n"
    files = {
        f"{name}/data/bin/{name}": script,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
        record += f"{path},sha256={digest.rstrip('=')},{len(text)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, text in files.items():
            member = zipfile.ZipInfo(path)
            member.external_attr = 0o100755 << 16
            archive.writestr(member, text)
    return out.getvalue()


def find(mini: Mini, events: Events, **tool: str):
    """The program that a recipe with one build tool gets."""
    wanted = BuildTool(name="poured", minimum="3.18", pin="4.5.6")
    recipe = replace(mini.recipe, buildtools=(replace(wanted, **tool),))
    cache = Path(mini.env["DECANT_CACHE"])
    return find_buildtools(recipe, cache, env=mini.env, report=events)["poured"]


def test_tool_on_path_is_used_when_new_enough(mini: Mini, tmp_path: Path):
    there = program(tmp_path / "bin", "poured", "echo poured version 3.18.0-rc1")
    mini.env["PATH"] = str(tmp_path / "bin")
    events = Events()
    found = find(mini, events)
    assert (found.path, found.version) == (there, "3.18.0")
    assert events.seen == []


def test_later_tool_on_path_is_used_when_the_first_is_old_or_broken(mini: Mini, tmp_path: Path):
    program(tmp_path / "old", "poured", "echo poured version 3.9")
    program(tmp_path / "broken", "poured", "echo poured version 9.9; exit 1")
    new = program(tmp_path / "new", "poured", "echo poured version 3.20")
    mini.env["PATH"] = os.pathsep.join(str(tmp_path / name) for name in ("old", "broken", "new"))
    assert find(mini, Events()).path == new


@pytest.mark.faults
@pytest.mark.skipif(
    not importlib.util.find_spec("pip") and not shutil.which("uv"), reason="neither pip nor uv"
)
def test_missing_tool_comes_from_the_package_index_once(mini: Mini):
    name = "poured-4.5.6-py3-none-any.whl"
    with FakeIndex(name, wheel("poured", "4.5.6"), kind="text/html", project="poured") as index:
        mini.env.update({"PIP_INDEX_URL": index.url, "UV_DEFAULT_INDEX": index.url})
        mini.env.update(
            {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "UV_NO_CACHE": "1"}
        )
        events = Events()
        found = find(mini, events)
    assert found.version == "4.5.6"
    assert events.stages == {"tools"}
    folder = Path(mini.env["DECANT_CACHE"]) / "buildtools"
    assert [path.name for path in folder.iterdir()] == ["poured-4.5.6"]
    assert find(mini, Events()) == found  # the index is gone by now


@pytest.mark.faults
def test_tool_that_cannot_be_had_is_told(mini: Mini):
    mini.env.update({"PIP_INDEX_URL": "http://127.0.0.1:1", "PIP_CONFIG_FILE": os.devnull})
    mini.env.update({"PIP_RETRIES": "0", "UV_DEFAULT_INDEX": "http://127.0.0.1:1"})
    with pytest.raises(BuildError, match="poured is not on PATH") as caught:
        find(mini, Events())
    assert "install poured 3.18 or newer" in caught.value.hint
    assert not list(Path(mini.env["DECANT_CACHE"]).rglob("poured*"))
