"""llama.cpp's own tests of its server: what they find in llama-server, they find in the gateway."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.upstream.forks import forking
from tests.upstream.suite import make_suite, run_suite

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
FEW = 25
"""More that fail here bare are no doubt of single tests any more."""


def listed() -> frozenset[str]:
    """What passes against llama-server: `python -m tests.upstream.run --bare --write`."""
    return frozenset((HERE / "bare.txt").read_text(encoding="utf-8").split())


def refused() -> dict[str, frozenset[str]]:
    """The listed tests that each name in refused.toml means."""
    tables = tomllib.loads((HERE / "refused.toml").read_text(encoding="utf-8"))["refused"]
    names = [name for table in tables for name in table["tests"]]
    assert len(names) == len(set(names))
    return {
        name: frozenset(
            test for test in listed() if test == name or test.startswith((f"{name}[", f"{name}::"))
        )
        for name in names
    }


def test_what_is_refused_is_listed_and_has_a_reason():
    tables = tomllib.loads((HERE / "refused.toml").read_text(encoding="utf-8"))["refused"]
    found = refused()

    assert all(len(table["reason"]) > 20 for table in tables)
    assert [name for name, tests in found.items() if not tests] == []
    assert sum(len(tests) for tests in found.values()) == len(frozenset().union(*found.values()))


@pytest.mark.llamacpp
@pytest.mark.faults
@pytest.mark.trained
@pytest.mark.filterwarnings("ignore")
def test_what_passes_against_llama_server_passes_through_the_gateway(toolchain, tmp_path):
    on_purpose = frozenset().union(*refused().values())
    suite = make_suite(tmp_path, toolchain)
    with forking(tmp_path) as gateway:
        found = run_suite(suite, gateway, only=listed())
    failed = {test for test in listed() if test not in found or found[test].outcome != "passed"}
    wrong = failed - on_purpose
    assert len(wrong) < FEW, {test: found.get(test) for test in wrong}
    if wrong:  # this machine may lack what a test needs, such as IPv6
        bare = run_suite(suite, toolchain.tool("llama-server"), only=wrong)
        wrong = {test for test in wrong if test in bare and bare[test].outcome == "passed"}

    assert {test: found.get(test) for test in sorted(wrong)} == {}
    assert sorted(on_purpose - failed) == []  # the list says no more than is so
