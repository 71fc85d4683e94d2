"""The page of a report: one file that needs no network, no script and no font from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.core.terminal_text import CONTROLS
from runtime.evaluation.evaluation import Case, Evaluation
from runtime.evaluation.metric import Interval
from runtime.evaluation.report.figure_text import (
    MISSING,
    best_models,
    compared,
    compared_sentence,
    cost_columns,
    cost_row,
    difference_sentences,
    direction_text,
    figure_text,
    headline,
    item_figure,
    judge_sentence,
    measured_sentences,
    metric_facts,
    metrics_in_order,
    range_text,
    refusal_sentences,
    score_of,
    worst_groups,
)
from runtime.evaluation.report.interest import Gathering, cut
from runtime.evaluation.report.plot_drawing import series_of
from runtime.evaluation.report.plots import plots_of
from runtime.evaluation.report.word_diff import Piece, marked

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).with_name("page")
PAGE, ITEM = "report.html.j2", "report_item.html.j2"
ITEMS_BYTES = 2_800_000
"""The most bytes of all listed items together, so that a page stays below 5 MB."""
GROUPS_MAX = 30
"""Groups of a column that are listed, the worst ones."""
COLUMNS_MAX = 12
"""Columns by which results are grouped, or listed items filtered."""
CHOICES_MAX = 40
"""Values of a column up to which items can be filtered by it."""
SURROGATES = re.compile("[\ud800-\udfff]")
WORDS = {"win": "▲ win", "loss": "▼ loss", "tie": "= tie"}
"""The verdicts as an item shows them."""
MARKS = {
    1: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    2: "M-3.5-3.5h7v7h-7z",
    3: "M0-5l5 5-5 5-5-5z",
    4: "M0-4.5L4.5 4h-9z",
    5: "M0 4.5L4.5-4h-9z",
    6: "M-1.5-5h3v3.5H5v3H1.5V5h-3V1.5H-5v-3h3.5z",
}
"""The markers of the plots' series, as paths in a square from -6 to 6."""


def page_of(evaluation: Evaluation, gathering: Gathering) -> str:
    """The page, as HTML; every text of the data and of models is escaped."""
    environment = page_environment()
    style, script = (
        (FOLDER / name).read_text(encoding="utf-8") for name in ("report.css", "report.js")
    )
    plots, plots_note = plots_of(evaluation, gathering)
    cases = gathering.listed()
    items, choices = item_parts(environment, evaluation, cases)
    template = environment.get_template(PAGE)
    return template.render(
        policy=policy(style, script),
        style=style,
        script=script,
        evaluation=evaluation,
        metric=metric_facts(evaluation, evaluation.deciding),
        headline=headline(evaluation),
        others=other_sentences(evaluation),
        scores=score_rows(evaluation),
        differences=difference_sentences(evaluation),
        outcomes=outcome_rows(evaluation, gathering),
        judge=[judge_sentence(one, evaluation.against) for one in evaluation.judge],
        plots=plots,
        plots_note=plots_note,
        marks=MARKS,
        groups=group_tables(evaluation),
        cost_columns=cost_columns(),
        costs=[(model, cost_row(model)) for model in evaluation.models],
        refusals=refusal_sentences(evaluation.models),
        items=items,
        count=gathering.count,
        compared=compared(evaluation),
        choices=choices,
        measured=measured_sentences(evaluation),
        metrics=[(m, direction_text(m)) for m in metrics_in_order(evaluation)],
    )


@cache
def page_environment() -> Environment:
    """Templates that escape all that they insert, except the parts that are made here."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ours"] = Markup  # for this folder's files, plots and items only
    return environment


def compile_templates() -> None:
    """Have the page's templates ready, so that the page takes less time."""
    for name in (PAGE, ITEM):
        page_environment().get_template(name)


def shown(value: Any) -> Any:  # Any: whatever a template inserts
    """The value as a page can hold it: a sign stands for each control character."""
    if hasattr(value, "__html__"):
        return value
    text = str(value).replace("\r\n", "\n")
    return SURROGATES.sub("\ufffd", CONTROLS.sub("\ufffd", text))


def policy(style: str, script: str) -> str:
    """The page's Content-Security-Policy: it runs its own script, and loads nothing."""
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src '{source_hash(style)}'",
            f"script-src '{source_hash(script)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def source_hash(source: str) -> str:
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def other_sentences(evaluation: Evaluation) -> list[str]:
    """The deciding metric's sentence for each compared model after the headline's."""
    metric = metric_facts(evaluation, evaluation.deciding)
    return [
        compared_sentence(evaluation, model.name, metric)
        for model in compared(evaluation)[1:]
        if evaluation.against
    ]


def score_rows(evaluation: Evaluation) -> list[tuple[str, list[dict[str, object]]]]:
    """By model: a cell for each metric."""
    metrics = metrics_in_order(evaluation)
    best = {metric.name: best_models(evaluation, metric) for metric in metrics}
    return [
        (
            model.name,
            [
                score_cell(score_of(evaluation, model.name, metric.name), metric.unit)
                | {"is_best": model.name in best[metric.name]}
                for metric in metrics
            ],
        )
        for model in evaluation.models
    ]


def score_cell(score: Interval | None, unit: str) -> dict[str, object]:
    if score is None:
        return {"value": MISSING, "range": "", "n": 0, "is_best": False}
    return {
        "value": figure_text(score.value, unit), "range": range_text(score, unit), "n": score.n,
        "is_best": False,
    }  # fmt: skip


def outcome_rows(
    evaluation: Evaluation, gathering: Gathering
) -> list[tuple[str, Mapping[str, int]]]:
    """By compared model: the items that it wins, loses and ties."""
    return [
        (model.name, gathering.tallies[model.name])
        for model in compared(evaluation)
        if model.name in gathering.tallies
    ]


def group_tables(evaluation: Evaluation) -> list[dict[str, object]]:
    """A table for each column: the models' scores by group, the worst group first."""
    unit = metric_facts(evaluation, evaluation.deciding).unit
    names = [model.name for model in evaluation.models]
    tables: list[dict[str, object]] = []
    for column in list(evaluation.groups)[:COLUMNS_MAX]:
        groups = worst_groups(evaluation, column, names)
        rows = [
            (
                cut(value, 120) or "(empty)",
                max(score.n for score in scores.values()),
                [score_cell(scores.get(name), unit) for name in names],
            )
            for value, scores in groups[:GROUPS_MAX]
        ]
        tables.append({"column": column, "rows": rows, "left_out": len(groups) - len(rows)})
    return tables


def item_parts(
    environment: Environment, evaluation: Evaluation, cases: list[Case]
) -> tuple[list[str], dict[str, list[str]]]:
    """The listed items as HTML, and the columns' values by which they can be filtered."""
    choices = column_choices(cases)
    render = partial(
        environment.get_template(ITEM).render,
        evaluation=evaluation,
        metrics=metrics_in_order(evaluation),
        names=[model.name for model in evaluation.models],
        words=WORDS,
        marks=MARKS,
        series=series_of(evaluation),
        verdicts_of=len(compared(evaluation)),
        figure=item_figure,
    )
    items: list[str] = []
    left = ITEMS_BYTES
    for place, case in enumerate(cases, 1):
        item = render(
            place=place,
            case=case,
            columns=json.dumps({n: shown(v) for n, v in case.columns.items() if n in choices}),
            answers=marked_answers(evaluation, case),
        )
        left -= len(item.encode())
        if left < 0:
            break
        items.append(item)
    return items, choices


def column_choices(cases: list[Case]) -> dict[str, list[str]]:
    """The columns with few values, each with its values."""
    found: dict[str, set[str]] = {}
    for case in cases:
        for name, value in case.columns.items():
            found.setdefault(name, set()).add(value)
    few = {name: sorted(values) for name, values in found.items() if 1 < len(values) <= CHOICES_MAX}
    return dict(list(few.items())[:COLUMNS_MAX])


def marked_answers(evaluation: Evaluation, case: Case) -> dict[str, list[Piece]]:
    """By model: its answer, marked where it differs from the one of the model compared with."""
    theirs = case.answers.get(evaluation.against)
    return {
        model: [Piece("same", answer)]
        if theirs is None or model == evaluation.against
        else marked(theirs, answer)
        for model, answer in case.answers.items()
    }
