"""The results as tables and sentences for a terminal of 80 columns."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from exporter.core.paths import size_text
from exporter.core.terminal_text import without_controls
from runtime.evaluation.evaluation import Case, Evaluation
from runtime.evaluation.report.figure_text import (
    MISSING,
    bare_figure,
    best_models,
    compared,
    cost_columns,
    cost_row,
    difference_sentences,
    headline,
    judge_sentence,
    measured_sentences,
    metric_facts,
    metrics_in_order,
    range_text,
    refusal_sentences,
    score_of,
    worst_groups,
)
from runtime.evaluation.report.interest import worst_first

NAME_WIDTH = 26
"""Columns for a model's name; the rest of a row then fits into 80."""
VALUE_WIDTH = 18
"""Columns for a group's name."""
ID_WIDTH = 16
"""Columns for an item's id."""
GROUPS_MAX = 10
"""Groups of a column that are listed, the worst ones."""
WORST_MAX = 5
"""Items that are listed."""


@dataclass(frozen=True, slots=True)
class TerminalTable:
    """A table to print, without control characters."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def terminal_tables(evaluation: Evaluation) -> list[TerminalTable]:
    """All tables except the items': scores, wins, groups, size against score, and costs."""
    tables = [score_table(evaluation), outcome_table(evaluation)]
    tables += [group_table(evaluation, column) for column in evaluation.groups]
    tables += [size_table(evaluation), cost_table(evaluation)]
    return [table for table in tables if table.rows]


def terminal_sentences(evaluation: Evaluation) -> list[str]:
    """The main result, the differences, the judge's verdicts, refusals, and how it was measured."""
    sentences = [
        headline(evaluation),
        *difference_sentences(evaluation),
        *(judge_sentence(one, evaluation.against) for one in evaluation.judge),
        *refusal_sentences(evaluation.models),
        *measured_sentences(evaluation),
    ]
    return [one_line(sentence) for sentence in sentences]


def score_table(evaluation: Evaluation) -> TerminalTable:
    """A row for each metric and model; the best figure of a metric is marked."""
    rows = []
    for metric in metrics_in_order(evaluation):
        best = best_models(evaluation, metric)
        title = f"{metric.title} ({metric.unit})" if metric.unit else metric.title
        for model in evaluation.models:
            score = score_of(evaluation, model.name, metric.name)
            if score:
                rows.append(
                    (
                        shortened_line(title, VALUE_WIDTH),
                        shortened_line(model.name, NAME_WIDTH),
                        bare_figure(score.value, metric.unit)
                        + (" *" if model.name in best else ""),
                        range_text(score, metric.unit),
                        str(score.n),
                    )
                )
    columns = ("metric", "model", "score", "95 % interval", "n")
    return TerminalTable("scores (* best)", columns, tuple(rows))


def outcome_table(evaluation: Evaluation) -> TerminalTable:
    """How many items each model wins and loses against the one compared with."""
    deciding = evaluation.deciding
    found = [
        (model.name, difference)
        for model in compared(evaluation)
        if (difference := evaluation.differences.get(model.name, {}).get(deciding))
    ]
    rows = tuple(
        (shortened_line(name, NAME_WIDTH), str(one.wins), str(one.losses), str(one.ties))
        for name, one in found
    )
    title = f"items won and lost against {one_line(evaluation.against)}"
    return TerminalTable(title, ("model", "wins", "losses", "ties"), rows)


def group_table(evaluation: Evaluation, column: str) -> TerminalTable:
    """The deciding metric's score by group and model, the worst group first."""
    metric = metric_facts(evaluation, evaluation.deciding)
    groups = worst_groups(evaluation, column, [model.name for model in evaluation.models])
    rows = tuple(
        (
            shortened_line(value, VALUE_WIDTH) or "(empty)",
            shortened_line(name, NAME_WIDTH),
            bare_figure(score.value, metric.unit),
            range_text(score, metric.unit),
            str(score.n),
        )
        for value, scores in groups[:GROUPS_MAX]
        for name, score in scores.items()
    )
    left_out = len(groups) - GROUPS_MAX
    more = f" ({left_out} more groups in the report)" if left_out > 0 else ""
    return TerminalTable(
        f"{one_line(metric.title)} by {shortened_line(column, NAME_WIDTH)}, worst first{more}",
        (shortened_line(column, VALUE_WIDTH), "model", "score", "95 % interval", "n"),
        rows,
    )


def size_table(evaluation: Evaluation) -> TerminalTable:
    """Size against the deciding score, the smallest first; empty unless two sizes are known."""
    sized = sorted((m for m in evaluation.models if m.nbytes), key=lambda m: m.nbytes)
    metric = metric_facts(evaluation, evaluation.deciding)
    rows = []
    for model in sized if len(sized) > 1 else ():
        score = score_of(evaluation, model.name, evaluation.deciding)
        rows.append(
            (
                shortened_line(model.name, NAME_WIDTH),
                shortened_line(model.quant, VALUE_WIDTH) or MISSING,
                size_text(model.nbytes),
                bare_figure(score.value, metric.unit) if score else MISSING,
                range_text(score, metric.unit) if score else "",
            )
        )
    title = shortened_line(metric.title, VALUE_WIDTH)
    columns = ("model", "quant", "size", title, "95 % interval")
    return TerminalTable("size against score", columns, tuple(rows))


def cost_table(evaluation: Evaluation) -> TerminalTable:
    """Speed, memory, answers cut off and refusals of each model."""
    columns = [name for name in cost_columns() if name not in ("size", "time")]
    rows = tuple(
        (
            shortened_line(model.name, NAME_WIDTH),
            *(dict(zip(cost_columns(), cost_row(model), strict=True))[name] for name in columns),
        )
        for model in evaluation.models
    )
    return TerminalTable("what each model took", ("model", *columns), rows)


def worst_table(
    evaluation: Evaluation, cases: Iterable[Case], *, most: int = WORST_MAX, width: int = 80
) -> TerminalTable:
    """The items of most interest with all models' answers, each text cut to the width.

    The cases are read once; only `most` of them are kept.
    """
    worst = heapq.nsmallest(most, cases, key=lambda case: worst_first(evaluation, case))
    name_width = min(NAME_WIDTH, max((len(m.name) for m in evaluation.models), default=0) + 2)
    id_width = min(ID_WIDTH, max((columns_of(one_line(c.id)) for c in worst), default=0))
    room = max(width - id_width - name_width - 10, 20)
    rows: list[tuple[str, ...]] = []
    for case in worst:
        identity = shortened_line(case.id, id_width)
        rows.append((identity, "question", "", shortened_line(case.question, room)))
        if case.reference:
            rows.append(("", "right answer", "", shortened_line(case.reference, room)))
        for name, answer in case.answers.items():
            verdict = one_line(case.verdicts.get(name, ""))
            rows.append(
                ("", shortened_line(name, name_width), verdict, shortened_line(answer, room))
            )
    return TerminalTable("worst items", ("item", "", "", "text"), tuple(rows))


def one_line(text: str) -> str:
    """The text on one line, without control characters and halves of surrogate pairs."""
    clean = without_controls(text).encode("utf-8", "replace").decode()
    return " ".join(clean.split())


def shortened_line(text: str, width: int) -> str:
    """The text on one line of at most `width` columns; wide characters take two."""
    line = one_line(text)
    if columns_of(line) <= width:
        return line
    cut = line
    while cut and columns_of(cut) > width - 1:
        excess = columns_of(cut) - (width - 1)
        cut = cut[: -max(1, math.ceil(excess / 2))]
    return f"{cut.rstrip()}…"


def columns_of(text: str) -> int:
    """The columns of a terminal that a text takes."""
    from unicodedata import combining, east_asian_width

    wide: Mapping[str, int] = {"W": 2, "F": 2}
    return sum(wide.get(east_asian_width(c), 1) for c in text if not combining(c))
