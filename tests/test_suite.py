"""The plugin of this suite: long tests are named, and over the budget fail; the seed is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.suite import EXEMPT, marks_of, sort_by_time

CHECKOUT = Path(__file__).parents[1]
TESTS = """
import time, pytest

def test_quick():
    pass

def test_lame():
    time.sleep(0.3)

@pytest.mark.slow
def test_long_by_nature():
    time.sleep(0.3)

@pytest.fixture
def shared():
    time.sleep(0.3)

def test_with_a_fixture_that_others_use(shared):
    pass
"""
HEARS_CTRL_C = """
import signal

def test_it():
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow: long by nature\n")
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.suite", *arguments]
    argv += ["-c", str(folder / "pytest.ini"), str(folder / "test_it.py")]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(argv, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 1])
def test_a_test_over_the_budget_fails_the_run_by_its_name(tmp_path, processes):
    done = run(tmp_path, "--budget", "0.2", *(["-p", "xdist", "-n", "1"] if processes else []))

    assert done.returncode == 1, done.stdout
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1, done.stdout
    assert "test_it.py::test_lame: 0.3 s" in failed[0]
    assert "a test has 0.2 s" in done.stdout


@pytest.mark.lasting
def test_within_the_budget_the_run_passes_and_tells_its_seed(tmp_path):
    done = run(tmp_path, "--budget", "4", "-p", "randomly")

    assert done.returncode == 0, done.stdout
    assert "random order: --randomly-seed=" in done.stdout


def test_ctrl_c_works_for_what_runs_in_the_background(tmp_path):
    """A shell's `&` has its commands ignore SIGINT, and so what they start."""
    (tmp_path / "test_it.py").write_text(HEARS_CTRL_C)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.suite"]
    argv += ["-c", str(tmp_path / "pytest.ini"), str(tmp_path / "test_it.py")]
    ignoring = ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", *argv]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    done = subprocess.run(ignoring, cwd=CHECKOUT, env=env, capture_output=True, check=False)

    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize(
    ("source", "marks"),
    [
        ("pytestmark = pytest.mark.a\n\nother = pytest.mark.b\n", {"a"}),
        (
            "pytestmark = [\n    pytest.mark.a,\n    pytest.mark.b(1),\n]\n\n@pytest.mark.c\n",
            {"a", "b"},
        ),
        ("@pytest.mark.a\ndef test():\n    pass\n", set()),
    ],
)
def test_the_marks_of_a_file_are_those_of_all_its_tests(source, marks):
    assert marks_of(source) == marks


@dataclass(frozen=True)
class Item:
    """What sort_by_time looks at."""

    path: Path
    name: str
    marks: tuple[str, ...] = ()

    def iter_markers(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in self.marks]


def test_files_that_take_long_come_first_and_their_tests_keep_their_order():
    quick, long = Path("quick.py"), Path("long.py")
    items: list = [Item(quick, f"{n}") for n in range(9)]
    items += [Item(long, "b"), Item(long, "a", ("llamacpp", "trained")), Item(quick, "last")]

    sort_by_time(items)

    assert [item.name for item in items] == ["b", "a", *map(str, range(9)), "last"]


@pytest.mark.parametrize("mark", sorted(EXEMPT))
def test_a_target_of_make_runs_in_every_folder_that_has_its_mark(mark):
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    selected = rf'(?:{mark}|"{mark} and[^"]*")'
    lines = re.findall(rf"^\t@\$\(PYTEST\).* -m {selected}(.*)$", makefile, re.MULTILINE)
    places = [CHECKOUT / (place or "tests") for place in " ".join(lines).split() or [""]]
    has_mark = re.compile(rf"^(pytestmark = .*|    |@)pytest\.mark\.{mark}\b", re.MULTILINE)
    files = (CHECKOUT / "tests").rglob("test_*.py")
    marked = [path for path in files if has_mark.search(path.read_text(encoding="utf-8"))]

    assert lines
    assert marked
    for path in marked:
        assert any(path.is_relative_to(place) for place in places), path
