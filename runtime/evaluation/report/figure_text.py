"""Figures and results in words, as tables, model cards and pages show them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from exporter.core.paths import size_text
from runtime.evaluation.evaluation import Evaluation, JudgeResult, MetricFacts, ModelFacts
from runtime.evaluation.metric import Difference, Interval

MISSING = "–"
"""The sign in place of an unknown figure."""
ONE_DECIMAL = 10
"""From here on figures need no second and third decimal."""
NO_DECIMAL = 1000
"""From here on figures need no decimal."""
TWO_DIGITS = 0.01
"""Smaller figures, such as the divergence of Q8_0, have two significant digits."""
MOST_DECIMALS = 7
"""Smaller figures are rounding."""


def figure_text(value: float, unit: str = "", *, size: float = 0.0) -> str:
    """A figure with its unit; its size, or a larger `size`, decides the number of decimals."""
    if not math.isfinite(value):
        return "∞" if value == math.inf else MISSING
    size = max(abs(value), size)
    decimals = 0 if size >= NO_DECIMAL else 1 if size >= ONE_DECIMAL or unit == "%" else 3
    if 0 < size < TWO_DIGITS and decimals > 1:
        decimals = min(1 - math.floor(math.log10(size)), MOST_DECIMALS)
    return f"{value:.{decimals}f}{f' {unit}' if unit else ''}"


def bare_figure(value: float, unit: str, *, size: float = 0.0) -> str:
    """A figure as `figure_text` gives it, without the unit."""
    return figure_text(value, unit, size=size).removesuffix(unit).strip()


def item_figure(value: float, unit: str = "") -> str:
    """The figure of one item, which is often a whole number."""
    if not float(value).is_integer():
        return figure_text(value, unit)
    return f"{value:.0f}{f' {unit}' if unit else ''}"


def signed_text(value: float, unit: str = "") -> str:
    """A difference with its sign; a difference of percentages is in points."""
    text = figure_text(value, unit).replace("%", "points")
    return f"+{text}" if value > 0 else text


def range_text(found: Interval | Difference, unit: str = "") -> str:
    """The 95 % interval of a figure, without the unit."""
    size = max(abs(end) for end in (found.low, found.high, found.value))
    low, high = (bare_figure(end, unit, size=size) for end in (found.low, found.high))
    if isinstance(found, Difference):
        low, high = (f"+{e}" if v > 0 else e for e, v in ((low, found.low), (high, found.high)))
    return f"{low} to {high}"


def known(value: float, text: str) -> str:
    """The text, or a dash where the value is 0, which stands for unknown."""
    return text if value else MISSING


def metric_facts(evaluation: Evaluation, name: str) -> MetricFacts:
    """The facts of a metric; a name that the evaluation lacks is its own title."""
    found = (metric for metric in evaluation.metrics if metric.name == name)
    return next(found, MetricFacts(name, name, "", None))


def metrics_in_order(evaluation: Evaluation) -> list[MetricFacts]:
    """All metrics, the deciding one first."""
    return sorted(evaluation.metrics, key=lambda metric: metric.name != evaluation.deciding)


def score_of(evaluation: Evaluation, model: str, metric: str) -> Interval | None:
    """A model's score, or None where it has none."""
    return evaluation.scores.get(model, {}).get(metric)


def compared(evaluation: Evaluation) -> list[ModelFacts]:
    """The models but the one that they are compared with."""
    return [model for model in evaluation.models if model.name != evaluation.against]


def best_models(evaluation: Evaluation, metric: MetricFacts) -> set[str]:
    """The models with the best figure; empty where no direction is better, or all are equal."""
    if metric.higher_is_better is None:
        return set()
    values = {
        model.name: score.value
        for model in evaluation.models
        if (score := score_of(evaluation, model.name, metric.name)) and math.isfinite(score.value)
    }
    if len(set(values.values())) < len({1, 2}):
        return set()
    best = (max if metric.higher_is_better else min)(values.values())
    return {name for name, value in values.items() if value == best}


def direction_text(metric: MetricFacts) -> str:
    """Which figures are better, in words."""
    if metric.higher_is_better is None:
        return "neither direction is better"
    return "higher is better" if metric.higher_is_better else "lower is better"


def headline(evaluation: Evaluation) -> str:
    """The main result in a sentence: whether the first model is better than `against`."""
    metric = metric_facts(evaluation, evaluation.deciding)
    models = compared(evaluation)
    if not evaluation.models:
        return "No model was measured."
    if not evaluation.against or not models:
        return alone(evaluation, evaluation.models[0].name, metric)
    return compared_sentence(evaluation, models[0].name, metric)


def alone(evaluation: Evaluation, model: str, metric: MetricFacts) -> str:
    """The sentence of a model that is compared with no other."""
    score = score_of(evaluation, model, metric.name)
    if score is None:
        return f"{model} has no score in {metric.title}."
    return (
        f"{model} scores {figure_text(score.value, metric.unit)} in {metric.title}"
        f" (95 % interval {range_text(score, metric.unit)}, n = {score.n})."
    )


def compared_sentence(evaluation: Evaluation, model: str, metric: MetricFacts) -> str:
    """The sentence of one model against the one compared with, in one metric."""
    against = evaluation.against
    found = evaluation.differences.get(model, {}).get(metric.name)
    if found is None:
        return f"{model} and {against} cannot be compared in {metric.title}: they share no items."
    scores = [score_of(evaluation, name, metric.name) for name in (model, against)]
    figures = " against ".join(figure_text(s.value, metric.unit) if s else MISSING for s in scores)
    change = f"{signed_text(found.value, metric.unit)}, 95 % interval"
    detail = f"{figures} ({change} {range_text(found, metric.unit)}, n = {found.n})"
    match found.verdict:
        case "better" | "worse":
            return f"{model} is {found.verdict} than {against} in {metric.title}: {detail}."
        case "differs":
            return f"{model} differs from {against} in {metric.title}: {detail}."
        case _:
            return (
                f"No difference between {model} and {against} is shown in {metric.title}: {detail}."
            )


def difference_sentences(evaluation: Evaluation) -> list[str]:
    """A sentence for each model and metric: how it differs from the one compared with."""
    sentences = []
    for metric in metrics_in_order(evaluation):
        for model in compared(evaluation):
            found = evaluation.differences.get(model.name, {}).get(metric.name)
            if found:
                sentences.append(
                    f"{metric.title}: {model.name} against {evaluation.against}:"
                    f" {found.words.removesuffix('.')}{p_text(found.p)}."
                )
    return sentences


def p_text(p: float | None) -> str:
    """The p value of a test, to append; empty where there is none."""
    least = 0.001
    if p is None or not math.isfinite(p):
        return ""
    return f" (p < {least})" if p < least else f" (p = {p:.3f})"


def judge_sentence(result: JudgeResult, against: str) -> str:
    """A judge's verdicts on one model in a sentence."""
    unusable = f" Replies that were no verdict: {result.unusable}." if result.unusable else ""
    return (
        f"The judge prefers {result.model} in {result.wins} items, {against} in {result.losses},"
        f" and neither in {result.ties}{p_text(result.p)}."
        f" The answer shown first won {result.first_preferred * 100:.0f} % of the verdicts"
        f" (50 % is without bias).{unusable}"
    )


def cost_columns() -> tuple[str, ...]:
    """The columns of `cost_row`, after the model's name."""
    return ("size", "memory", "tokens/s", "first token", "time", "cut off", "refused")


def cost_row(model: ModelFacts) -> tuple[str, ...]:
    """The figures of `cost_columns` for a model; a dash where one is unknown."""
    return (
        known(model.nbytes, size_text(model.nbytes)),
        known(model.memory, size_text(model.memory)),
        known(model.tokens_per_second, f"{model.tokens_per_second:.1f}"),
        known(model.first_token_s, f"{model.first_token_s:.2f} s"),
        known(model.seconds, duration_text(model.seconds)),
        str(model.cut_off),
        str(sum(model.refusals.values())),
    )


def duration_text(seconds: float) -> str:
    """A time for people, such as 8.2 s, 3 min 20 s or 2 h 5 min."""
    minute, hour = 60, 3600
    if round(seconds, 1) < minute:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < hour:
        return f"{seconds // minute:.0f} min {seconds % minute:.0f} s"
    return f"{seconds // hour:.0f} h {seconds % hour // minute:.0f} min"


def refusal_sentences(models: Sequence[ModelFacts]) -> list[str]:
    """A sentence for each reason for which a model has no outcome of an item."""
    return [
        f"{model.name}: {count} without an outcome: {reason}."
        for model in models
        for reason, count in sorted(model.refusals.items(), key=lambda pair: -pair[1])
    ]


def measured_sentences(evaluation: Evaluation) -> list[str]:
    """How it was measured: the data, its size, the seed and the day, in sentences."""
    data = evaluation.data
    rows = f"{data.items} of {data.rows} rows" if data.items != data.rows else f"{data.rows} rows"
    sentences = [f"Measured on {data.name}: {rows}, read as {data.layout}."]
    if data.skipped:
        sentences.append(f"{data.skipped} rows could not be read and were left out.")
    if not evaluation.is_complete:
        sentences.append(
            "The evaluation was interrupted: it covers the items that every model has answered."
        )
    sentences.append(
        f"Began {evaluation.began}; took {duration_text(evaluation.seconds)}."
        " Intervals are 95 % intervals over the items."
    )
    return [*sentences, *data.notes]


def worst_groups(
    evaluation: Evaluation, column: str, models: Iterable[str]
) -> list[tuple[str, dict[str, Interval]]]:
    """The groups of a column with the models' scores in the deciding metric, the worst first.

    A group is as bad as the worst score in it; the model compared with counts only if alone.
    """
    metric = metric_facts(evaluation, evaluation.deciding)
    sign = -1 if metric.higher_is_better is False else 1
    names = list(models)
    groups = []
    for value, scores in evaluation.groups.get(column, {}).items():
        found = {name: score for name in names if (score := scores.get(name, {}).get(metric.name))}
        if found:
            groups.append((value, found))

    def worst(group: tuple[str, dict[str, Interval]]) -> float:
        ours = [s for name, s in group[1].items() if name != evaluation.against]
        return min(sign * score.value for score in ours or group[1].values())

    return sorted(groups, key=worst)
