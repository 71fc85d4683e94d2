"""The terminal's tables and the model card."""

from __future__ import annotations

import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runtime.evaluation.metric import Difference, Interval
from runtime.evaluation.report.card_section import escaped, model_card
from runtime.evaluation.report.figure_text import (
    duration_text,
    figure_text,
    item_figure,
    range_text,
    signed_text,
)
from runtime.evaluation.report.terminal_table import (
    columns_of,
    group_table,
    score_table,
    shortened_line,
    size_table,
    terminal_sentences,
    terminal_tables,
    worst_table,
)
from tests.support.evaluations import BASE, SMALL, TUNE, cases, evaluation, single
from tests.support.hostile_texts import PAYLOADS, poisoned

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printed(table, width=80):
    """The table as the command prints it on a terminal."""
    console = Console(width=width, highlight=False, file=StringIO())
    drawn = Table(*table.columns, box=None, pad_edge=False)
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console.print(drawn)
    return console.file.getvalue().splitlines()


def test_every_row_is_one_line_of_80_columns():
    items = cases(count=40)
    results = evaluation(items)
    tables = [*terminal_tables(results), worst_table(results, items)]

    assert len(tables) == 7
    for table in tables:
        assert len(printed(table)) == len(table.rows) + 1, table.title


def test_long_and_wide_names_fit_too():
    items = [poisoned(c, "模型" * 30) for c in cases(count=10)]
    results = poisoned(evaluation(cases(count=10)), "模型" * 30)
    for table in [*terminal_tables(results), worst_table(results, items)]:
        assert max(columns_of(line) for line in printed(table)) <= 80


def test_the_best_score_is_marked():
    items = cases(count=40)
    results = evaluation(items)
    marked = {(row[0], row[1]) for row in score_table(results).rows if row[2].endswith("*")}
    best = {
        (metric, pick(results.scores, key=lambda m: results.scores[m][name].value))
        for metric, name, pick in (
            ("exact match (%)", "exact_match", max),
            ("loss (nats)", "loss", min),
            ("chrF", "chrf", max),
        )
    }

    assert marked == best


def test_the_worst_group_is_first():
    items = cases(count=100)
    results = evaluation(items)
    lowest = {
        value: min(scores[m]["exact_match"].value for m in (TUNE, SMALL))
        for value, scores in results.groups["topic"].items()
    }
    order = list(dict.fromkeys(row[0] for row in group_table(results, "topic").rows))

    assert order == sorted(lowest, key=lowest.get)


def test_the_worst_group_is_the_highest_where_lower_is_better():
    items = cases(count=100)
    results = replace(evaluation(items), deciding="loss")
    highest = {
        value: max(scores[m]["loss"].value for m in (TUNE, SMALL))
        for value, scores in results.groups["topic"].items()
    }
    order = list(dict.fromkeys(row[0] for row in group_table(results, "topic").rows))

    assert order == sorted(highest, key=highest.get, reverse=True)


def test_quants_are_listed_by_size():
    results = evaluation(cases(count=5))

    assert [row[0] for row in size_table(results).rows] == [SMALL, BASE, TUNE]
    assert size_table(single(cases(count=5))).rows == ()


def test_worst_items_begin_with_a_loss_and_show_all_answers():
    items = cases(count=100)
    table = worst_table(evaluation(items), iter(items), most=3)

    assert sum(row[1] == "question" for row in table.rows) == 3
    assert "loss" in [row[2] for row in table.rows[:5]]
    assert {row[1] for row in table.rows} == {"question", "right answer", BASE, TUNE, SMALL}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_control_character_reaches_the_terminal_or_the_card(payload):
    items = [poisoned(case, payload) for case in cases(count=3)]
    results = poisoned(evaluation(cases(count=3)), payload)
    tables = [*terminal_tables(results), worst_table(results, items)]
    cells = [c for t in tables for c in (t.title, *t.columns, *(x for r in t.rows for x in r))]

    assert not CONTROLS.search("".join(cells + terminal_sentences(results)))
    assert not CONTROLS.search(model_card(results).replace("\n", ""))


def test_the_sentences_begin_with_the_result_and_end_with_how_it_was_measured():
    sentences = terminal_sentences(evaluation(cases(count=40)))

    assert sentences[0].startswith(f"{TUNE} is better than {BASE} in exact match")
    assert any("the prompt has 4,310 tokens" in sentence for sentence in sentences)
    assert any(sentence.startswith("Measured on tickets.jsonl: 40 of 43") for sentence in sentences)


def test_a_card_has_a_table_sentences_and_the_settings():
    card = model_card(evaluation(cases(count=40)))
    table = [line for line in card.splitlines() if line.startswith("|")]

    assert len(table) == 5
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {6}
    for part in ("n = 40", "tickets.jsonl", "2026-11-27", "seed 0", "95 % intervals"):
        assert part in card


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_card_s_layout_does_not_depend_on_names(payload):
    results = evaluation(cases(count=3))
    shapes = []
    for one in (results, poisoned(results, payload)):
        lines = model_card(one).splitlines()
        shapes.append([(line[:2], len(re.findall(r"(?<!\\)\|", line))) for line in lines if line])
    clean, found = shapes

    assert [s for s in found if s[0] in ("| ", "- ")] == [s for s in clean if s[0] in ("| ", "- ")]
    assert "<" not in model_card(poisoned(results, payload))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b`c`*d*", r"a\|b\`c\`\*d\*"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("[x](http://y)", r"\[x\](http\://y)"),
        ("a\nb", "a b"),
        ("- a", r"\- a"),
        ("12. a", r"12\. a"),
        ("30.5 %", "30.5 %"),
        ("support-tune", "support-tune"),
    ],
)
def test_markdown_is_escaped(text, expected):
    assert escaped(text) == expected


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.81234, "", "0.812"), (81.26, "%", "81.3 %"), (5.26, "%", "5.3 %"),
        (12.345, "nats", "12.3 nats"), (1234.5, "", "1234"), (float("nan"), "", "–"),
        (float("inf"), "nats", "∞"), (-0.5, "", "-0.500"),
        (0.000687, "nats", "0.00069 nats"),
        (0.0, "nats", "0.000 nats"),
        (3e-12, "", "0.0000000"),
    ],
)  # fmt: skip
def test_figures_have_sensible_decimals(value, unit, expected):
    assert figure_text(value, unit) == expected


@pytest.mark.parametrize(("value", "expected"), [(5.0, "5 x"), (0.0, "0 x"), (0.25, "0.250 x")])
def test_whole_figures_of_items_have_no_decimals(value, expected):
    assert item_figure(value, "x") == expected


def test_both_ends_of_an_interval_have_the_same_decimals():
    assert range_text(Interval(20.5, 8.536, 32.41, 9)) == "8.5 to 32.4"
    assert range_text(Difference(1.0, -0.5, 2.5, 9, None, "differs", "")) == "-0.500 to +2.500"


def test_differences_of_percentages_are_points():
    assert signed_text(5.26, "%") == "+5.3 points"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(8.24, "8.2 s"), (59.97, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_times_are_for_people(seconds, expected):
    assert duration_text(seconds) == expected


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdefg", 6, "abcde…"),
        ("模型模型", 5, "模型…"),
        ("a b", 9, "a b"),
    ],
)
def test_lines_are_cut_by_columns(text, width, expected):
    assert shortened_line(text, width) == expected
