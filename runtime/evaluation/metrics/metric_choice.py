"""The metrics by name, and which of them an evaluation computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exporter.core.errors import InputError
from exporter.core.near_names import did_you_mean
from runtime.evaluation.item import Task
from runtime.evaluation.metric import Metric, Needs
from runtime.evaluation.metrics.answer_metrics import ANSWER_METRICS
from runtime.evaluation.metrics.divergence_metrics import DIVERGENCE_METRICS
from runtime.evaluation.metrics.form_metrics import form_metric, is_form
from runtime.evaluation.metrics.label_metrics import LABEL_METRICS
from runtime.evaluation.metrics.libraries import HINT, is_installed
from runtime.evaluation.metrics.likelihood_metrics import LIKELIHOOD_METRICS
from runtime.evaluation.metrics.ngram_metrics import LIBRARIES, NGRAM_METRICS
from runtime.evaluation.metrics.own_function import is_own, own_metric

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        *ANSWER_METRICS,
        *NGRAM_METRICS,
        *LABEL_METRICS,
        *LIKELIHOOD_METRICS,
        *DIVERGENCE_METRICS,
    )
}
SHORT = ("exact_match", "f1", "loss", "length")
LONG = ("rougeL", "chrf", "bleu", "loss", "perplexity", "length", "repetition", "refusals")
DEFAULTS: Mapping[Task, tuple[str, ...]] = {
    "answers": LONG,
    "labels": ("accuracy", "macro_f1", "ece"),
    "json": ("json_match", "valid_json", "loss", "length"),
    "preferences": ("preference", "preference_norm", "margin"),
    "texts": ("bits_per_byte", "loss", "perplexity"),
}
NEEDS: Mapping[Task, tuple[Needs, ...]] = {
    "answers": ("answer", "reference", "divergences"),
    "labels": ("answer", "reference", "labels", "divergences"),
    "json": ("answer", "reference", "divergences"),
    "preferences": ("answer", "reference", "rejected", "divergences"),
    "texts": ("reference", "divergences"),
}
"""The parts of outcomes that each kind of data has."""
NOUNS: Mapping[Needs, str] = {
    "answer": "generated answers",
    "reference": "right answers",
    "rejected": "rejected answers",
    "labels": "labels",
    "divergences": "right answers",
}


def metrics_for(task: Task, references_are_short: bool) -> tuple[str, ...]:
    """The names of the metrics that suit a kind of data; the first decides who wins an item."""
    return SHORT if task == "answers" and references_are_short else DEFAULTS[task]


def available(metric: Metric) -> str:
    """Why a metric cannot be computed here, in words; empty if it can."""
    package = LIBRARIES.get(metric.name, "")
    if not package or is_installed(package):
        return ""
    return f"{metric.name} needs the Python package {package}, which is not installed"


def left_out(
    task: Task, references_are_short: bool, changes: Sequence[str] = ()
) -> tuple[str, ...]:
    """A sentence for each metric that would be computed if its package were installed.

    changes: the user's, as in `chosen_metrics`; a metric that they remove has no sentence.
    """
    names = metrics_for(task, references_are_short)
    reasons = (available(METRICS[name]) for name in names if f"-{name}" not in changes)
    return tuple(f"left out: {reason} ({HINT})" for reason in reasons if reason)


def chosen_metrics(
    task: Task, references_are_short: bool, changes: Sequence[str], trust: bool
) -> tuple[Metric, ...]:
    """The default metrics with a user's changes; the first decides who wins an item.

    changes: `NAME` adds a metric, `-NAME` removes one, `regex=PATTERN` and `json_schema=FILE` count
    answers of a form, `FILE.py:FUNCTION` adds a function of the user's, which is run only with
    `trust`. Raises InputError.
    """
    chosen = {
        name: METRICS[name]
        for name in metrics_for(task, references_are_short)
        if not available(METRICS[name])
    }
    for change in changes:
        if change.startswith("-"):
            chosen.pop(_known(change[1:]).name, None)
            continue
        metric = _added(change, task, trust)
        chosen[metric.name] = metric
    if not chosen:
        raise InputError("no metric is left", hint=f"--metric NAME: {', '.join(METRICS)}")
    return tuple(chosen.values())


def with_divergences(
    metrics: tuple[Metric, ...], changes: Sequence[str], *, is_comparable: bool, is_usual: bool
) -> tuple[Metric, ...]:
    """The metrics with those of divergence, unless a user's changes remove them.

    is_comparable: whether two GGUFs are compared; is_usual: whether their divergence is shown
    without being asked for. Raises InputError if one is asked for and nothing can be compared.
    """
    wanted = [metric.name for metric in metrics if metric.needs == "divergences"]
    if wanted and not is_comparable:
        raise InputError(
            f"metric {wanted[0]} compares a GGUF's distributions with another GGUF's, and there is"
            " only one",
            hint="name two GGUFs, or a base with an adapter; --against one of them",
        )
    added = (metric for metric in DIVERGENCE_METRICS if is_usual and metric not in metrics)
    return (*metrics, *(metric for metric in added if f"-{metric.name}" not in changes))


def _added(name: str, task: Task, trust: bool) -> Metric:
    """The metric that a change adds. Raises InputError."""
    if is_form(name) and "answer" in NEEDS[task]:
        return form_metric(name)
    return _trusted(name, trust) if is_own(name) else _usable(name, task)


def _known(name: str) -> Metric:
    if name in METRICS:
        return METRICS[name]
    hint = did_you_mean(
        name, METRICS, f"--metric {', '.join(METRICS)}", form="--metric {}", most=3, alike=0.5
    )
    raise InputError(f"there is no metric {name!r}", hint=hint)


def _usable(name: str, task: Task) -> Metric:
    metric = _known(name)
    if metric.needs not in NEEDS[task]:
        raise InputError(
            f"metric {name} needs {NOUNS[metric.needs]}, which {task} do not have",
            hint=f"for {task}: "
            + ", ".join(one.name for one in METRICS.values() if one.needs in NEEDS[task]),
        )
    if reason := available(metric):
        raise InputError(reason, hint=HINT)
    return metric


def _trusted(name: str, trust: bool) -> Metric:
    if not trust:
        raise InputError(
            f"metric {name} is Python code, which would run with your rights",
            hint="if you trust the file, add --trust-code",
        )
    return own_metric(name)
