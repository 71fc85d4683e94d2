"""Plots: one for each kind of data, in the page's colours, with texts that stay texts."""

from __future__ import annotations

import math
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from runtime.evaluation.evaluation import CalibrationBin, Confusion
from runtime.evaluation.metric import Interval
from runtime.evaluation.report import plots
from runtime.evaluation.report.interest import Gathering
from runtime.evaluation.report.plots import plots_of
from tests.support.evaluations import BASE, LOSS, MODELS, SMALL, TUNE, cases, evaluation
from tests.support.hostile_texts import PAYLOADS

pytestmark = pytest.mark.lasting


def made(results, items=()):
    gathering = Gathering(results)
    for case in items:
        gathering.add(case)
    found, _ = plots_of(results, gathering)
    return found


def bare(**changes):
    """An evaluation without data for any plot."""
    empty = replace(
        evaluation(cases(count=2)), scores={}, confusion={}, calibration={}, metrics=(LOSS,),
    )  # fmt: skip
    return replace(empty, **changes)


def texts(plot):
    return ["".join(e.itertext()) for e in ET.fromstring(plot.svg).iter() if e.tag == "text"]


@pytest.fixture(scope="module")
def of_labels():
    items = cases("labels", 30)
    return made(evaluation(items, "labels"), items)


def test_each_kind_of_data_has_its_plot(of_labels):
    titles = [plot.title for plot in of_labels]

    assert titles == [
        "Score: exact match", "Score: loss", "Score: chrF", "Score: length",
        "Score against size: exact match",
        f"Loss per item: {TUNE} against {BASE}", f"Loss per item: {SMALL} against {BASE}",
        f"Confusion matrix: {BASE}", f"Confusion matrix: {TUNE}", f"Confusion matrix: {SMALL}",
        "Calibration of label probabilities",
    ]  # fmt: skip


def test_answers_have_a_plot_of_lengths():
    items = cases(count=10)

    assert made(evaluation(items), items)[-1].title == "Length of answers"


def test_no_plot_without_data():
    assert made(bare()) == []
    assert made(bare(confusion={BASE: Confusion((), ())}, calibration={BASE: ()})) == []
    one_size = [replace(MODELS[0], nbytes=5), *(replace(m, nbytes=0) for m in MODELS[1:])]
    scores = {m.name: {"exact_match": Interval(1, 0, 2, 3)} for m in MODELS}
    assert made(bare(models=one_size, scores=scores)) == []


def test_figures_that_are_none_are_left_out():
    odd = {BASE: {"loss": Interval(math.nan, 0, 1, 2)}, TUNE: {"loss": Interval(1, 0.5, 2, 2)}}
    (plot,) = made(bare(scores=odd))

    assert TUNE in texts(plot)
    assert BASE not in texts(plot)


def test_the_same_results_give_the_same_bytes(of_labels):
    items = cases("labels", 30)

    assert made(evaluation(items, "labels"), items) == of_labels


def test_colours_are_the_page_s_and_texts_are_texts(of_labels):
    for plot in of_labels:
        root = ET.fromstring(plot.svg)
        painted = {e.get(k) for e in root.iter() for k in ("fill", "stroke")} - {None, "none"}
        assert painted <= {"var(--ink)", "var(--faint)", "var(--line)", "var(--surface)"} | {
            f"var(--s{n})" for n in range(1, 7)
        }
        assert texts(plot)
        assert not [e for e in root.iter() if e.get("style") or e.tag in ("style", "image")]


@pytest.fixture(scope="module")
def hostile():
    """Plots with every payload as a label, a model and a metric."""
    labels = tuple(f"{payload}{n}" for n, payload in enumerate(PAYLOADS[::-1]))
    models = [replace(MODELS[0], name=label, nbytes=10**9 + n) for n, label in enumerate(labels)]
    counts = tuple(
        tuple(5 if i == j else 1 for j in range(len(labels))) for i in range(len(labels))
    )
    metrics = [replace(LOSS, name=label, title=label, unit=label) for label in labels]
    score = Interval(1, 0.5, 2, 3)
    return made(
        bare(
            models=models, against=labels[0], deciding=labels[1], metrics=metrics,
            scores={m.name: dict.fromkeys(labels, score) for m in models},
            confusion={labels[0]: Confusion(labels[:20], counts[:20]),
                       labels[1]: Confusion(labels[20:], counts[20:])},
            calibration={label: (CalibrationBin(0.5, 0.5, 3),) for label in labels},
        )
    )  # fmt: skip


def test_hostile_texts_stay_texts(hostile):
    assert len(hostile) > 10
    for plot in hostile:
        root = ET.fromstring(plot.svg)
        tags = {e.tag for e in root.iter()}
        assert tags <= {"svg", "title", "desc", "defs", "g", "path", "use", "text", "clipPath",
                        "rect"}  # fmt: skip
        assert not [a for e in root.iter() for a in e.attrib if a.startswith("on")]
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", plot.svg)


def test_dollars_are_no_formulas(hostile):
    assert any(t.startswith(r"$\frac{1}") for plot in hostile for t in texts(plot))


def test_labels_that_begin_with_an_underscore_are_shown(hostile):
    assert any(t.startswith("_label") for plot in hostile for t in texts(plot))


def test_large_matrices_show_their_commonest_labels():
    labels = tuple(f"l{n:02d}" for n in range(30))
    counts = tuple(
        tuple((n + 1) * (i == n) for i in range(31)) for n in range(30)
    )  # the last is the commonest
    (plot,) = made(bare(confusion={BASE: Confusion(labels, counts)}))

    assert [t for t in texts(plot) if t.startswith("l") and t[1:].isdigit()][:20] == list(
        labels[10:]
    )
    assert "10 rare labels are left out" in plot.caption


def test_ten_thousand_items_do_not_make_a_large_plot():
    items = [replace(c, id=f"{c.id}-{n}") for n in range(50) for c in cases(count=200)]
    found = made(evaluation(items[:200]), items)
    scatter = next(plot for plot in found if plot.title.startswith("Loss per item"))

    assert sum(len(plot.svg) for plot in found) < 1_000_000
    assert "One item of 7 is drawn." in scatter.caption


def test_a_loss_plot_counts_the_items_that_are_better():
    items = cases(count=50)
    better = sum(c.values[TUNE]["loss"] < c.values[BASE]["loss"] for c in items)
    scatter = next(p for p in made(evaluation(items), items) if p.title.startswith("Loss per"))

    assert f"{better} of 50 items" in scatter.caption


def test_plots_beyond_the_budget_are_left_out_with_a_note(monkeypatch):
    monkeypatch.setattr(plots, "BYTES_MAX", 20_000)
    items = cases(count=5)
    found, note = plots_of(evaluation(items), Gathering(evaluation(items)))

    assert 0 < len(found) < 5
    assert "left out" in note


def test_a_user_s_settings_of_matplotlib_have_no_effect():
    import matplotlib as mpl

    items = cases(count=2)
    plain = made(bare(scores=evaluation(items).scores), items)
    with mpl.rc_context(
        {"svg.fonttype": "path", "axes.facecolor": "red", "font.size": 30, "axes.linewidth": 9}
    ):
        assert made(bare(scores=evaluation(items).scores), items) == plain
        assert mpl.rcParams["font.size"] == 30


def test_pyplot_is_not_needed():
    items = cases(count=2)
    loaded = set(sys.modules)
    made(evaluation(items), items)

    assert "matplotlib.pyplot" not in set(sys.modules) - loaded
