"""The end of `decant demo`: its model against its base, measured as `decant eval` does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from exporter.core.atomic_file import atomic_write
from exporter.core.errors import DecantError
from exporter.core.events import Report, Step, Warn
from exporter.demo import DemoModels
from exporter.demo.corpus import pirate_items
from exporter.llamacpp.toolchain import Toolchain
from exporter.model_store import file_name

BASE_NAME = "demo-base"
ITEMS = 30  # they take some seconds
DATA = "pirate-questions.jsonl"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The evaluation's result in a sentence, and its report."""

    headline: str
    items: int
    report: str


def measure_demo(
    models: DemoModels, gguf: Path, quant: str, toolchain: Toolchain, *, report: Report
) -> Verdict | None:
    """Measure the demo's GGUF against its base's, on questions of the training.

    Returns None, after a warning, if the evaluation fails: the demo can succeed without it. Raises
    KeyboardInterrupt.
    """
    from runtime.cli.eval_command import run_evaluation
    from runtime.cli.eval_options import EvalOptions
    from runtime.evaluation.metrics.metric_choice import LONG
    from runtime.evaluation.report.figure_text import headline
    from runtime.evaluation.report.report_folder import PAGE

    report(Step("measuring the fine-tune against its base"))
    try:
        base = export_base(models, quant, toolchain)
        options = EvalOptions(
            models=(str(base), str(gguf)),
            data=str(write_items(models.base.parent)),
            against=base.stem,
            # these metrics need no library; a likelihood would need one more engine
            metrics=(*(f"-{name}" for name in LONG), "exact_match", "f1", "length"),
            parallel=4,
        )
        found = run_evaluation(options, report)
        if found.ended_by is not None:
            raise found.ended_by
    except DecantError as error:
        report(Warn(f"the evaluation did not end: {error.message}"))
        return None
    evaluation = found.evaluation
    return Verdict(headline(evaluation), evaluation.data.items, str(found.folder / PAGE))


def export_base(models: DemoModels, quant: str, toolchain: Toolchain) -> Path:
    """The base as a GGUF beside its folder. Raises the errors of an export."""
    from exporter.export import export
    from exporter.formats.export_request import ExportRequest

    output = models.base.parent / file_name(BASE_NAME, quant)
    export(ExportRequest((), models.base, (quant,), (output,), force=True), toolchain)
    return output


def write_items(folder: Path) -> Path:
    """The questions and right answers as JSONL. Raises OutputError."""
    path = folder / DATA
    with atomic_write(path, force=True) as file:
        for item in pirate_items(ITEMS):
            file.write(json.dumps(item).encode() + b"\n")
    return path
