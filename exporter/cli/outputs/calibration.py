"""Makes the importance matrix of an export, for --calibrate or for AUTO."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from exporter.core.errors import InputError, ToolchainError
from exporter.core.events import Note, Report, Warn
from exporter.core.ggml_types import AUTO

if TYPE_CHECKING:
    from exporter.formats.export_request import ExportRequest
    from exporter.llamacpp.toolchain import Toolchain

TRAINING = "runtime.cli.training_text"
"""The module that reads training data; the exporter names runtime in strings."""
TEXT = Path(__file__).parents[2] / "quantize" / "calibration.txt"
"""Some thousand tokens in many languages, with code: the text if there is no training data."""


def calibrated(
    request: ExportRequest, toolchain: Toolchain, *, dry_run: bool, report: Report
) -> ExportRequest:
    """The request with its importance matrix; AUTO gets one from the training data, or from TEXT.

    If that matrix cannot be made, it warns and returns the request unchanged.
    """
    from exporter.calibrate import with_matrix

    recipe = request.recipe
    if AUTO not in request.quants or recipe.imatrix or recipe.calibrate or not recipe.calibrates:
        return with_matrix(request, toolchain, dry_run=dry_run, report=report)
    adapters = [folder for folder, _ in request.adapters]
    found = importlib.import_module(TRAINING).training_text(adapters)
    with TemporaryDirectory(prefix="decant-") as folder:
        text = TEXT
        if found:
            text = Path(folder) / f"{found[0]}.txt"
            text.write_text(found[1], encoding="utf-8")
        named = f"the adapter's training data, `{found[0]}`" if found else "decant's small text"
        report(Note(f"calibrating on {named}; --calibrate TEXT names another, --no-calibrate none"))
        with_text = replace(request, recipe=replace(recipe, calibrate=text))
        try:
            return with_matrix(with_text, toolchain, dry_run=dry_run, report=report)
        except (InputError, ToolchainError) as error:
            is_tool = isinstance(error, ToolchainError)
            reason = "llama-imatrix does not take this model" if is_tool else error.message
            report(Warn(f"the types are chosen without an importance matrix: {reason}"))
            return request
