"""`--to ollama`: an export into a new folder, with a Modelfile."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from exporter.core.atomic_file import atomic_write
from exporter.core.atomic_folder import atomic_folder, refuse_inputs, refuse_taken
from exporter.core.events import Note, Report, silent
from exporter.core.gguf import read_gguf
from exporter.export import ExportResult, export
from exporter.formats.export_request import ExportRequest, FolderResult
from exporter.formats.ollama import MAX_TOKENS, MODELFILE, modelfile
from exporter.llamacpp.toolchain import Toolchain
from exporter.model_store import plain_name

MARKS = (MODELFILE,)


def export_for_ollama(
    request: ExportRequest,
    folder: Path,
    toolchain: Toolchain,
    *,
    dry_run: bool = False,
    report: Report = silent,
) -> FolderResult:
    """Export into the new folder `folder`, and write the Modelfile beside the GGUF.

    The request's only output gives the GGUF's name. Raises OutputError if `folder` is taken, and
    the errors of an export.
    """
    started = time.monotonic()
    refuse_taken(folder, MARKS, force=request.force)
    name = request.outputs[0].name
    if dry_run:
        wanted = replace(request, outputs=(folder / name,), force=True)
        return summary(export(wanted, toolchain, dry_run=True, report=report), folder, started)
    with atomic_folder(
        folder, plan=f"ollama {name}", marks=MARKS, force=request.force, report=report
    ) as new:
        wanted = replace(request, outputs=(new / name,), force=True)
        result = export(wanted, toolchain, report=report)
        refuse_inputs(folder, (result.base, *result.adapters))
        gguf = read_gguf(new / name, keep_items=MAX_TOKENS)
        others = [file.path.name for file in result.files if file.path.name != name]
        text = modelfile(gguf, result.base, others, report=report)
        with atomic_write(new / MODELFILE, force=True) as file:
            file.write(text.encode())
    report(Note(f"then: ollama create {plain_name(folder.name)} -f {folder / MODELFILE}"))
    return summary(result, folder, started)


def summary(result: ExportResult, folder: Path, started: float) -> FolderResult:
    return FolderResult(
        folder,
        tuple(file.path.name for file in result.files),
        sum(file.nbytes for file in result.files),
        result.base,
        result.adapters,
        result.tensors,
        result.merged,
        time.monotonic() - started,
    )
