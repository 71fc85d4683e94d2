"""The evaluation of `decant export --eval`: the smallest exported file without a loss."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.terminal_renderer import reporting
from exporter.core.events import Note, Report
from exporter.core.paths import evaluations_folder
from exporter.core.terminal_text import without_controls
from runtime.cli.eval_command import measured, opened_data, show
from runtime.cli.eval_options import EvalOptions

if TYPE_CHECKING:
    from runtime.evaluation.data.dataset import Dataset
    from runtime.evaluation.evaluation import Evaluation

LOSS = "loss"
"""The metric that counts beside the deciding one, as it shows a loss of quality first."""


def read_data(
    source: str, *, as_json: bool = False, quiet: bool = False, report: Report
) -> ExportMeasure:
    """The data, read before anything is exported. Raises InputError, DownloadError."""
    from runtime.evaluation.metrics.metric_choice import chosen_metrics
    from runtime.evaluation.run_evaluation import are_short

    options = EvalOptions((), source, as_json=as_json, quiet=quiet)
    dataset = opened_data(options, report)
    chosen_metrics(dataset.facts.task, are_short(dataset), (), False)
    return ExportMeasure(options, dataset)


@dataclass(frozen=True, slots=True)
class ExportMeasure:
    """Data to measure the files of an export on."""

    options: EvalOptions
    dataset: Dataset

    def measure(
        self,
        models: Sequence[Path],
        against: str | None,
        sizes: Mapping[str, int],
        adapters: Sequence[Path],
        notes: Sequence[str] = (),
    ) -> dict[str, object]:
        """Measure the models; print the results, or return them as JSON's values.

        against: the model that the others are compared with. sizes: bytes of the files to choose
        from, by the model's name. adapters: the folders of the adapters merged into the models.
        notes: sentences for the reader. Raises EngineError, and the error or KeyboardInterrupt that
        ended the evaluation early.
        """
        from runtime.cli.prepared_run import prepared
        from runtime.evaluation.data.training_data import leaks
        from runtime.evaluation.outcome_cache import OutcomeCache
        from runtime.evaluation.report.report_folder import PAGE
        from runtime.evaluation.report.stored_fields import plain

        options = replace(self.options, models=tuple(map(str, models)), against=against)
        source, dataset = options.data or "", self.dataset
        root = evaluations_folder(os.environ)
        with ExitStack() as stack:
            report = stack.enter_context(reporting(quiet=options.quiet))
            cache = stack.enter_context(OutcomeCache(root / "outcomes.sqlite"))
            leaked = [
                one for folder in adapters if (one := leaks(folder, source, split=dataset.split))
            ]
            for note in (*notes, *leaked):
                report(Note(note))
            run = prepared(options, dataset, cache, report)
            run.notes = (*run.notes, *notes, *leaked)
            evaluation, folder = measured(options, run, root, report)
        smallest, sentence = smallest_without_loss(evaluation, sizes)
        if not options.as_json:
            show(options, evaluation, folder)
            if sentence:
                click.echo(without_controls(sentence))
        if run.ended_by is not None:
            raise run.ended_by
        return {
            **plain(asdict(evaluation)),
            "report": str(folder / PAGE),
            "smallest": smallest,
            "sentence": sentence,
        }


def smallest_without_loss(
    evaluation: Evaluation, sizes: Mapping[str, int]
) -> tuple[str | None, str]:
    """The smallest model that no metric shows to be worse, and a sentence on it.

    A model is worse if the deciding metric or the loss has that verdict. Without a comparison the
    sentence is empty; where each model is worse, there is no smallest one.
    """
    titles = {metric.name: metric.title for metric in evaluation.metrics}
    worse: list[str] = []
    against, decided = evaluation.against, tuple(dict.fromkeys((evaluation.deciding, LOSS)))
    for name in sorted(sizes, key=sizes.__getitem__):
        differences = evaluation.differences.get(name, {})
        found = {metric: differences[metric] for metric in decided if metric in differences}
        if not found:
            continue
        names = [titles[metric] for metric in found]
        lost = [titles[metric] for metric, one in found.items() if one.verdict == "worse"]
        if not lost:
            neither = f"neither {' nor '.join(names)}" if len(names) > 1 else f"{names[0]} not"
            n = min(one.n for one in found.values())
            smaller = f" ({'; '.join(worse)})" if worse else ""
            good = (
                "is the smallest without a loss that shows" if len(sizes) > 1 else "shows no loss"
            )
            return name, (
                f"{name} {good}: against {against}, {neither} is worse at n = {n}{smaller}."
            )
        worse.append(f"{name} is worse by {' and '.join(lost)}")
    if not worse:
        return None, ""
    each = "each shows a loss" if len(sizes) > 1 else "it shows a loss"
    return None, f"{each} against {against}: {'; '.join(worse)}."
