"""The files of a report come back as they were written, or are refused with a reason."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import asdict, replace

import numpy as np
import pytest

from exporter.core.errors import InputError, OutputError
from runtime.evaluation.metric import Interval
from runtime.evaluation.report.interest import Gathering
from runtime.evaluation.report.report_folder import (
    ITEMS,
    PAGE,
    REPORT,
    list_reports,
    read_cases,
    read_evaluation,
    write_report,
)
from tests.support.evaluations import BASE, SMALL, TUNE, cases, evaluation, single
from tests.support.hostile_texts import PAYLOADS, poisoned


@pytest.fixture
def no_plots(monkeypatch):
    """As where matplotlib is missing: plots take most of the time."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)


def test_a_report_is_read_as_it_was_written(tmp_path, no_plots):
    items = cases("labels", 20)
    written = evaluation(items, "labels")

    write_report(tmp_path, written, iter(items))

    assert json.dumps(asdict(read_evaluation(tmp_path))) == json.dumps(asdict(written))
    assert list(read_cases(tmp_path)) == items
    assert sorted(path.name for path in tmp_path.iterdir()) == [ITEMS, PAGE, REPORT]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_of_the_data_is_lost(tmp_path, no_plots, payload):
    items = [poisoned(case, payload) for case in cases(count=3)]
    written = poisoned(evaluation(cases(count=3)), payload)

    write_report(tmp_path, written, items)

    assert read_evaluation(tmp_path).models == written.models
    assert list(read_cases(tmp_path)) == items
    assert len((tmp_path / ITEMS).read_text("utf-8").splitlines()) == len(items)


def test_figures_that_json_lacks_are_written_as_json_has_them(tmp_path, no_plots):
    items = cases(count=2)
    odd = Interval(math.nan, -math.inf, np.float32(0.5), np.int64(3))
    write_report(tmp_path, replace(single(items), scores={TUNE: {"loss": odd}}), items)

    def refuse(name):
        raise AssertionError(name)

    stored = json.loads((tmp_path / REPORT).read_text("utf-8"), parse_constant=refuse)
    read = read_evaluation(tmp_path).scores[TUNE]["loss"]

    assert stored["scores"][TUNE]["loss"] == {"value": None, "low": "-inf", "high": 0.5, "n": 3}
    assert math.isnan(read.value)
    assert (read.low, read.high, read.n) == (-math.inf, 0.5, 3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, "version 2"),
        ({"models": "x"}, "models"),
        ({"models": [{"name": "a"}]}, "source"),
        ({"seconds": "12"}, "seconds"),
        ({"is_complete": 1}, "is_complete"),
        ({"seconds": 10**400}, "seconds"),
        ({"data": None}, "data"),
        ({"scores": {"m": {"loss": {"value": 1, "low": 1, "high": 1, "n": 1.5}}}}, "n"),
    ],
)
def test_a_damaged_report_is_refused_by_the_field(tmp_path, no_plots, change, told):
    items = cases(count=2)
    write_report(tmp_path, evaluation(items), items)
    stored = json.loads((tmp_path / REPORT).read_text("utf-8"))
    (tmp_path / REPORT).write_text(json.dumps(stored | change), "utf-8")

    with pytest.raises(InputError) as caught:
        read_evaluation(tmp_path)

    assert told in caught.value.message
    assert caught.value.hint


def test_a_field_of_a_later_version_is_left_out(tmp_path, no_plots):
    items = cases(count=2)
    write_report(tmp_path, evaluation(items), items)
    stored = json.loads((tmp_path / REPORT).read_text("utf-8"))
    (tmp_path / REPORT).write_text(json.dumps(stored | {"later": 1}), "utf-8")

    assert read_evaluation(tmp_path).id == evaluation(items).id


@pytest.mark.parametrize("line", [b"{", b"[]", b"\xff\n", b"[" * 100_000, b'{"id": 3}\n'])
def test_a_damaged_item_is_refused_by_its_line(tmp_path, no_plots, line):
    items = cases(count=2)
    write_report(tmp_path, evaluation(items), items)
    with (tmp_path / ITEMS).open("ab") as file:
        file.write(line)
    read = read_cases(tmp_path)

    assert [next(read), next(read)] == items
    with pytest.raises(InputError, match=r"items\.jsonl:3"):
        next(read)


def test_missing_items_are_an_error_for_the_user(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        next(read_cases(tmp_path))


def test_reports_are_listed_newest_first_and_damaged_ones_noted(tmp_path, no_plots):
    items = cases(count=2)
    whole = evaluation(items)
    times = {
        "a": "2026-11-27T09:00:00+01:00",
        "b": "2026-11-27T08:30:00+00:00",  # later than a: another zone
        "c": "2026-11-26T23:00:00Z",
        "d": "yesterday",
    }
    for name, began in times.items():
        write_report(tmp_path / name, replace(whole, began=began), items)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / REPORT).write_text("{")
    (tmp_path / "f").mkdir()

    found, notes = list_reports(tmp_path)

    assert [one.folder.name for one in found] == ["b", "a", "c", "d"]
    assert len(notes) == 1
    assert "not JSON" in notes[0]


def test_no_reports_where_there_is_no_folder(tmp_path):
    assert list_reports(tmp_path / "none") == ([], [])


def test_an_interrupted_write_leaves_the_former_report(tmp_path, no_plots):
    items = cases(count=2)
    write_report(tmp_path, evaluation(items), items)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken():
        yield items[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path, evaluation(items), broken())

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_is_a_file_is_an_error_for_the_user(tmp_path):
    (tmp_path / "x").write_text("")

    with pytest.raises(OutputError):
        write_report(tmp_path / "x", evaluation(cases(count=2)), [])


def test_memory_stays_bounded_by_the_items_that_are_shown():
    items = cases(count=2)
    gathering = Gathering(evaluation(items))

    def long(number):
        return replace(items[0], id=str(number), line=number, question=f"{number} " + "x" * 50_000)

    for number in range(1600):
        gathering.add(long(number))
    tracemalloc.start()
    for number in range(400):
        gathering.add(long(number))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert grown < 500_000  # 400 shortened questions are 1.6 MB
    assert max(len(case.question) for case in gathering.listed()) < 4100


def test_losses_wins_and_ties_share_the_list():
    template = cases(count=2)[0]
    gathering = Gathering(evaluation(cases(count=2)))
    for number in range(3000):
        verdict = ("loss", "win", "tie")[number % 3]
        gathering.add(replace(template, id=str(number), verdicts={TUNE: verdict, SMALL: "tie"}))
    kinds = [case.verdicts[TUNE] for case in gathering.listed()]

    assert kinds == ["loss"] * 300 + ["win"] * 200
    assert gathering.tallies[TUNE] == {"win": 1000, "loss": 1000, "tie": 1000}


def test_the_worst_item_is_first_whichever_direction_is_better():
    items = cases(count=40)
    for deciding, sign in (("loss", -1), ("exact_match", 1)):
        gathering = Gathering(replace(evaluation(items), deciding=deciding))
        for case in items:
            gathering.add(replace(case, verdicts={}))
        values = [
            min(sign * v[deciding] for m, v in case.values.items() if m != BASE and v)
            for case in gathering.listed()
        ]
        assert values == sorted(values)
