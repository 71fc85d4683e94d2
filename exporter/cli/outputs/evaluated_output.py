"""`decant export --eval DATA`: measures the new files, the base and the 16-bit merged model."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.cli.common_options import store
from exporter.cli.terminal_renderer import reporting
from exporter.core.errors import DecantError, ModelError, SpaceError
from exporter.core.events import Report, Step
from exporter.core.gguf import read_gguf
from exporter.core.leftover_folders import temporary_folder
from exporter.inputs.base_sample import is_made_of
from exporter.model_store import StoredModel, file_name, list_models

if TYPE_CHECKING:
    from exporter.cli.outputs.output_format import ExportOptions
    from exporter.export import ExportedFile, ExportResult
    from exporter.formats.export_request import ExportRequest
    from exporter.llamacpp.toolchain import Toolchain

RUNTIME = "runtime.cli.eval_export"
"""The module that measures; the exporter names runtime in strings, as `app.py` does."""
REFERENCES = ("BF16", "F16", "F32")
"""Types of the file with which the others are compared, in order of preference."""

PREFIX = ".eval-"
"""Prefix of the temporary folder's name, before the id of the process."""
ONCE = "was exported for this evaluation only"


@dataclass
class EvaluationAfter:
    """The evaluation at the end of an export; its data is read before the export begins."""

    options: ExportOptions
    measure: Callable[..., dict[str, object]]
    """Runtime's ExportMeasure.measure, which holds the data."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the user about the models that are compared or left out."""

    def of(
        self, request: ExportRequest, result: ExportResult, toolchain: Toolchain
    ) -> Mapping[str, object]:
        """Measure the files of an export, and print the results, or return them for --json.

        The base and the merged model are exported in 16 bits to a temporary folder first, as far as
        the disk has room. Raises EngineError and others of `decant eval`.
        """
        options = self.options
        quants = result.files[: len(request.quants)]  # the others are projectors
        folder = request.outputs[0].parent
        with temporary_folder(folder, PREFIX) as temporary:
            with reporting(quiet=options.quiet) as report:
                made = SixteenBits(request, result, toolchain, Path(temporary), report)
                reference = made.reference(quants, self.notes)
                base = made.base(self.notes) if request.adapters else None
            found: dict[str, object] = self.measure(
                measured_models(quants, reference, base),
                compared_with(quants, reference, base),
                sizes_of(quants, reference),
                [adapter for adapter, _ in request.adapters],
                self.notes,
            )
        return found


def evaluation_after(options: ExportOptions) -> EvaluationAfter | None:
    """The evaluation that --eval asks for, with its data read; None without it.

    A dry run reads a file, and pulls nothing. Raises InputError and DownloadError for data that
    cannot be used.
    """
    data = options.eval_data
    if data is None or (options.dry_run and not Path(data).exists()):
        return None
    with reporting(quiet=options.quiet) as report:
        found = importlib.import_module(RUNTIME).read_data(
            data, as_json=options.as_json, quiet=options.quiet, report=report
        )
    return EvaluationAfter(options, found.measure)


@dataclass(frozen=True, slots=True)
class SixteenBits:
    """Exports the models with which the quantized files are compared, to a temporary folder."""

    request: ExportRequest
    result: ExportResult
    toolchain: Toolchain
    folder: Path
    report: Report

    @property
    def kind(self) -> str:
        """The 16-bit type that the base's weights have."""
        from exporter.gguf_inputs.gguf_base import is_gguf
        from exporter.inputs.open_checkpoint import open_checkpoint

        base = self.result.base
        if is_gguf(base):
            kinds = {info.type.name for info in read_gguf(base).tensors}
            return "F16" if "F16" in kinds and "BF16" not in kinds else "BF16"
        trust = self.request.trust_remote_code
        config = open_checkpoint(base, trust_remote_code=trust).config
        named = config.get("dtype", config.get("torch_dtype"))
        return "F16" if named == "float16" else "BF16"

    def reference(self, quants: Sequence[ExportedFile], notes: list[str]) -> Path | None:
        """The merged model in 16 bits: one of the files, else exported; None without room."""
        for kind in REFERENCES:
            for file in quants:
                if file.quant == kind:
                    return file.path
        kind, name = self.kind, StoredModel(quants[0].path).name
        what = f"the merged model in {kind}"
        try:
            path = self.exported(replace(self.request, quants=(kind,)), name, what)
        except SpaceError as error:
            notes.append(f"{what} is left out: {error.message}")
            return None
        notes.append(f"{what} {ONCE}")
        return path

    def base(self, notes: list[str]) -> Path | None:
        """The base without adapters: its GGUF, else an export in 16 bits, else a stored model.

        None, with a note, if it cannot be exported and none is stored.
        """
        from exporter.core.paths import model_name
        from exporter.gguf_inputs.gguf_base import is_gguf

        base, kind = self.result.base, self.kind
        if is_gguf(base):
            return base
        name = model_name(base)
        if StoredModel(self.request.outputs[0]).name == name:
            name = f"base-{name}"  # the merged model may be called like its base
        try:
            alone = replace(
                self.request, adapters=(), combine=None, base=base, quants=(kind,), name=""
            )
            path = self.exported(alone, name, f"the base in {kind}")
        except DecantError as error:
            if (found := stored_base(base)) is not None:
                notes.append(f"the base is the stored `{found.name}`: {error.message}")
                return found
            notes.append(f"the base is left out: {error.message}")
            return None
        notes.append(f"the base in {kind} {ONCE}")
        return path

    def exported(self, request: ExportRequest, name: str, what: str) -> Path:
        """The path of a new file in the temporary folder. Raises the errors of an export."""
        from exporter.export import export
        from exporter.quantize.type_recipe import PLAIN

        self.report(Step(f"exporting {what}, to compare with"))
        path = self.folder / file_name(name, request.quants[0])
        plain = replace(
            request, outputs=(path,), recipe=PLAIN, split_max=0, force=True, verify=False
        )
        export(plain, self.toolchain, report=self.report)
        return path


def stored_base(base: Path) -> Path | None:
    """The largest stored model of a base without an adapter."""
    from exporter.core.paths import model_name

    found: list[Path] = []
    for model in list_models(store()):
        with suppress(ModelError):
            header = read_gguf(model.path)
            is_it = is_made_of(header, model_name(base), base)
            if is_it and not header.text("decant.adapter"):
                found.append(model.path)
    return max(found, key=lambda path: path.stat().st_size, default=None)


def measured_models(
    quants: Sequence[ExportedFile], reference: Path | None, base: Path | None
) -> list[Path]:
    """The base, the 16-bit model and the others, the smallest last; each once."""
    by_size = sorted(quants, key=lambda file: -file.nbytes)
    paths = [base, reference, *(file.path for file in by_size)]
    return list(dict.fromkeys(path for path in paths if path is not None))


def compared_with(
    quants: Sequence[ExportedFile], reference: Path | None, base: Path | None
) -> str | None:
    """The name of the 16-bit model; without one, of the largest of several files, else of the
    base. None if there is no model to compare with.
    """
    if reference is None and len(quants) > 1:
        reference = max(quants, key=lambda file: file.nbytes).path
    chosen = reference or base
    return StoredModel(chosen).full_name if chosen is not None else None


def sizes_of(quants: Sequence[ExportedFile], reference: Path | None) -> dict[str, int]:
    """Bytes of the files to choose from, by name; empty for one file without a 16-bit model."""
    if reference is None and len(quants) == 1:
        return {}
    return {StoredModel(file.path).full_name: file.nbytes for file in quants}
