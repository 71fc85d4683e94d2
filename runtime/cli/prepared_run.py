"""The evaluation that `decant eval` asks for, before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.cli.common_options import store
from exporter.core.events import Note, Report
from runtime.cli.eval_models import (
    WantedModels,
    compared_with,
    leak_notes,
    open_models,
    server_model,
)
from runtime.cli.eval_options import EvalOptions, share_of
from runtime.engine.memory_fit import FitOptions
from runtime.evaluation.data.dataset import Dataset
from runtime.evaluation.divergence_plan import divergence_plan
from runtime.evaluation.evaluated_model import AnswerSettings, EvaluatedModel
from runtime.evaluation.metric import Metric
from runtime.evaluation.metrics.metric_choice import chosen_metrics, left_out, with_divergences
from runtime.evaluation.outcome_cache import OutcomeCache
from runtime.evaluation.run_evaluation import (
    ModelGroup,
    Run,
    are_short,
    parts_for,
    plan_of,
    token_limit,
    with_answers,
)
from runtime.evaluation.summary import Comparison


def prepared(options: EvalOptions, dataset: Dataset, cache: OutcomeCache, report: Report) -> Run:
    """The evaluation, with its models opened and its metrics chosen. Raises InputError."""
    task, short = dataset.facts.task, are_short(dataset)
    metrics = chosen_metrics(task, short, options.metrics, options.trust_code)
    wanted = WantedModels(
        options.models,
        options.adapters,
        options.base,
        FitOptions(options.context, options.threads, options.parallel, force=options.force),
        options.url,
        options.remote_model,
        options.key_file,
        has_questions=task != "texts",
    )
    leaked = leak_notes(
        wanted,
        options.data or "",
        split=dataset.split,
        is_held_out=share_of(options.split) is not None,
    )
    groups = open_models(wanted, store(), cache, report=report)
    without = without_likelihoods(groups, metrics)
    if without and task != "texts":
        metrics = with_answers(metrics)
    against = compared_with(groups, options.against)
    settings = AnswerSettings(options.max_tokens or token_limit(dataset), options.seed)
    several_files = sum(group.engines is not None for group in groups) > 1
    models = [model for group in groups for model in group.models]
    is_usual = bool(against) and several_files and "reference" in parts_for(metrics)
    is_comparable = divergence_plan(models, against, cache) is not None
    metrics = with_divergences(
        metrics, options.metrics, is_comparable=is_comparable, is_usual=is_usual and is_comparable
    )
    plan = plan_of(dataset, metrics, settings)
    comparison = Comparison(
        metrics, against, options.by or None, options.seed, with_agreement=is_usual
    )
    notes = (*leaked, *without, *left_out(task, short, options.metrics))
    for note in notes:
        report(Note(note))
    return Run(groups, dataset, plan, comparison, cache, opened_judge(options, report), notes)


def without_likelihoods(groups: Sequence[ModelGroup], metrics: Sequence[Metric]) -> tuple[str, ...]:
    """A sentence for each server that lacks the likelihoods which metrics need."""
    if all(metric.needs == "answer" for metric in metrics):
        return ()
    servers = [model for group in groups if group.engines is None for model in group.models]
    return tuple(
        f"{model.name} is measured by its answers only: {why}"
        for model in servers
        if (why := model.why_no_likelihoods())
    )


def opened_judge(options: EvalOptions, report: Report) -> EvaluatedModel | None:
    """The model of --judge; None without it. Raises InputError and EngineError."""
    if not options.judge:
        return None
    what = "data and the answers"
    return server_model(options.judge, options.judge_model, options.judge_key_file, what, report)
