"""The results as Markdown, for a model card."""

from __future__ import annotations

import re

from runtime.evaluation.evaluation import Evaluation
from runtime.evaluation.report.figure_text import (
    MISSING,
    best_models,
    difference_sentences,
    direction_text,
    figure_text,
    headline,
    judge_sentence,
    measured_sentences,
    metrics_in_order,
    range_text,
    score_of,
)
from runtime.evaluation.report.interest import cut
from runtime.evaluation.report.terminal_table import one_line

SPECIAL = re.compile(r"([\\`*_\[\]#|~$@]|:(?=//)|^[-+=]|(?:(?<=^\d)|(?<=^\d\d))[.)](?=\s|$))")
"""Characters that mean something to some Markdown: formulas, mentions and addresses, too."""
ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
TEXT_MAX = 400
"""Characters of a name or a sentence in a card."""


def model_card(evaluation: Evaluation) -> str:
    """A section of a model card: the result, a table, the differences, and how it was measured."""
    lines = ["## Evaluation", "", escaped(headline(evaluation)), "", *score_lines(evaluation), ""]
    sentences = difference_sentences(evaluation)
    sentences += [judge_sentence(one, evaluation.against) for one in evaluation.judge]
    lines += [f"- {escaped(sentence)}" for sentence in sentences]
    if sentences:
        lines.append("")
    lines += [f"- {escaped(sentence)}" for sentence in measured_sentences(evaluation)]
    if settings := evaluation.settings:
        listed = ", ".join(f"{name} {value}" for name, value in settings.items())
        lines.append(f"- {escaped(f'Settings: {listed}.')}")
    return "\n".join(lines) + "\n"


def score_lines(evaluation: Evaluation) -> list[str]:
    """A table with a row for each model and a column for each metric; the best figure is bold."""
    metrics = metrics_in_order(evaluation)
    arrows = {"higher is better": " ↑", "lower is better": " ↓"}
    head = [f"{escaped(m.title)}{arrows.get(direction_text(m), '')}" for m in metrics]
    lines = [row_line(["Model", *head]), row_line(["---", *("---:" for _ in metrics)])]
    best = {metric.name: best_models(evaluation, metric) for metric in metrics}
    for model in evaluation.models:
        cells = [escaped(model.name)]
        for metric in metrics:
            score = score_of(evaluation, model.name, metric.name)
            value = escaped(figure_text(score.value, metric.unit)) if score else MISSING
            mark = "**" if model.name in best[metric.name] else ""
            shown = f" ({escaped(range_text(score, metric.unit))})" if score else ""
            cells.append(f"{mark}{value}{mark}{shown}")
        lines.append(row_line(cells))
    return [*lines, "", "In brackets: 95 % intervals. ↑: higher is better, ↓: lower."]


def row_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """The text on one line, so that Markdown shows it as it is."""
    line = cut(one_line(text), TEXT_MAX)
    return SPECIAL.sub(r"\\\1", line).translate(ENTITIES)
