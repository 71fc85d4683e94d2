"""A pytest plugin: the seed of the random order, the time limit of a test, Ctrl-C, and files that
need not be imported.

Loaded by tests/conftest.py. A test that takes long is made faster or marked `slow`, so that
`make test` stays short.
"""

from __future__ import annotations

import re
import signal
from collections import Counter
from pathlib import Path

import pytest

WARNED_S = 5.0
EXEMPT = {"slow", "families", "programs", "pages", "lm_eval", "vllm"}
"""Marks of tests that may take longer, because they run under separate targets of make."""

LONG, SHORT = 0.5, 0.03  # seconds of processor time that a test takes, roughly
LONG_MARKS = {"trained", "llamacpp", "lasting"}
"""Marks of the tests that take LONG; the others take SHORT."""

NOTHING_BUT_NOT = re.compile(r"not \w+( and not \w+)*")
OF_THE_FILE = re.compile(r"^pytestmark = .*?(?=^\S(?<![\])]))", re.MULTILINE | re.DOTALL)
"""The marks of all tests in a file."""
MARK = re.compile(r"pytest\.mark\.(\w+)")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--budget", type=float, metavar="SECONDS",
        help="fail the run if a test that is not marked slow takes longer",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell started it in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # else no command hears Ctrl-C
    if not hasattr(config, "workerinput"):  # only the process that gets all reports
        config.pluginmanager.register(Durations(config.getoption("--budget")), "durations")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Ignore files in which no test is selected: their import takes half of a collection's time."""
    expression = config.getoption("-m")
    if not NOTHING_BUT_NOT.fullmatch(expression) or not collection_path.name.startswith("test_"):
        return None
    left_out = set(expression.replace("not ", "").split(" and "))
    return bool(left_out & marks_of(collection_path.read_text(encoding="utf-8"))) or None


@pytest.hookimpl(trylast=True)  # after those who leave tests out, and who shuffle them
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several processes, begin with the files that take longest; the last ones are short."""
    if hasattr(config, "workerinput"):
        sort_by_time(items)


def sort_by_time(items: list[pytest.Item]) -> None:
    """Put the files that take long first; the order of the tests in each stays."""
    seconds: Counter[Path] = Counter()
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        seconds[item.path] += LONG if marks & LONG_MARKS else SHORT
    items.sort(key=lambda item: (-seconds[item.path], item.path))


def marks_of(source: str) -> set[str]:
    """The marks that a test file gives to all of its tests."""
    found = OF_THE_FILE.search(source)
    return set(MARK.findall(found[0])) if found else set()


class Durations:
    """The durations of tests, without their fixtures, which other tests share."""

    def __init__(self, budget_s: float | None) -> None:
        """Record the tests that take longer than WARNED_S or `budget_s`, whichever is less."""
        self.budget_s = budget_s
        self.long: list[tuple[float, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        limit_s = WARNED_S if self.budget_s is None else min(WARNED_S, self.budget_s)
        is_exempt = not EXEMPT.isdisjoint(report.keywords)
        if report.when == "call" and not is_exempt and report.duration > limit_s:
            self.long.append((report.duration, report.nodeid))

    def over(self) -> list[str]:
        """The tests that break the budget; none without one."""
        return [name for took, name in self.long if self.budget_s and took > self.budget_s]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.over() and not session.exitstatus:
            session.exitstatus = 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        config, line = terminalreporter.config, terminalreporter.write_line
        if (seed := getattr(config.option, "randomly_seed", None)) is not None:
            line(f"random order: --randomly-seed={seed}")
        over = self.over()
        for took, name in sorted(self.long, reverse=True):
            is_over = name in over
            line(f"{'FAILED' if is_over else 'long:'} {name}: {took:.1f} s", red=is_over)
        if over:
            line(f"a test has {self.budget_s:g} s: make it faster, or mark it slow")
