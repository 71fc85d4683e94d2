"""The options of an export in any format, and the merge plan that they lead to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from exporter.core.errors import InputError
from exporter.core.events import Report, Warn, silent
from exporter.core.ggml_types import FLOATS
from exporter.core.machine import cores
from exporter.gguf_inputs.gguf_base import is_gguf, lossy_types, open_gguf
from exporter.gguf_inputs.placed_adapter import on_base
from exporter.inputs.adapter import open_adapter
from exporter.inputs.adapter_spec import AdapterSpec
from exporter.inputs.checkpoint import Checkpoint
from exporter.inputs.locate import find_base
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.inputs.quantized.plain_base import dequantized
from exporter.llamacpp.toolchain import Toolchain, find_toolchain
from exporter.merge.adapter_doubts import say_doubts
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import Combination, MergeDtype, MergePlan, WeightedAdapter
from exporter.merge.qlora import BaseRoundtrip, as_trained_on
from exporter.quantize.type_recipe import PLAIN, Recipe


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """The options of one export."""

    adapters: tuple[tuple[Path, float], ...]
    """Folders with the user's factor on their scaling; empty for converting the base alone."""
    base: Path | None
    """The base; None for the one that the adapter names."""
    quants: tuple[str, ...]
    """Names in the form that `parse_quant` returns."""
    outputs: tuple[Path, ...]
    """One file for each of `quants`."""
    merge_dtype: MergeDtype = "float32"
    recipe: Recipe = PLAIN
    combine: Combination | None = None
    """How several adapters are combined; None merges them in turn."""
    trust_remote_code: bool = False
    base_roundtrip: BaseRoundtrip = "auto"
    """Whether the base gets NF4 fake-quantization, as in QLoRA training."""
    split_max: int = 0
    """Bytes of tensors per file, above which a model is split; 0 for no limit."""
    force: bool = False
    name: str = ""
    """The result's name; without it, the one of the adapters or the base."""
    verify: bool = False
    """Whether to compare the files with base and adapters after writing."""
    threads: int = field(default_factory=cores)


@dataclass(frozen=True, slots=True)
class FolderResult:
    """A folder that an export has written, or would write after a dry run."""

    path: Path
    files: tuple[str, ...]
    """Names of the weight files."""
    nbytes: int
    """Total size of the weight files, in bytes."""
    base: Path
    adapters: tuple[Path, ...]
    tensors: int
    merged: int
    """Number of tensors that the adapter changes."""
    seconds: float


def plan_request(
    request: ExportRequest, toolchain: Toolchain | None, *, report: Report = silent
) -> MergePlan:
    """Open the inputs of a merge and plan it.

    toolchain: dequantizes types that only llama.cpp can read; None refuses a base of such types.
    """
    adapters = [
        WeightedAdapter(open_adapter(folder, report=report), scale)
        for folder, scale in request.adapters
    ]
    first = adapters[0].adapter if adapters else None
    trust = request.trust_remote_code
    base = base_folder(request, first, report=report)
    from_gguf = is_gguf(base)
    checkpoint = (
        open_gguf(base, toolchain or find_toolchain())
        if from_gguf
        else open_checkpoint(base, trust_remote_code=trust)
    )
    specs = [
        on_base(one.adapter, checkpoint, toolchain, trust_remote_code=trust, report=report)
        for one in adapters
    ]
    adapters = [replace(one, adapter=spec) for one, spec in zip(adapters, specs, strict=True)]
    if from_gguf:
        say_double_loss(checkpoint, request, report=report)
        return plan_merge(checkpoint, adapters, dtype=request.merge_dtype, combine=request.combine)
    checkpoint = as_trained_on(checkpoint, specs, mode=request.base_roundtrip, report=report)
    needed = toolchain if adapters else None  # without adapters the converter dequantizes by itself
    checkpoint = dequantized(checkpoint, needed, report=report)
    merge = plan_merge(checkpoint, adapters, dtype=request.merge_dtype, combine=request.combine)
    for note in merge.notes:
        report(Warn(note))
    for spec in specs:
        say_doubts(spec, checkpoint, report=report)
    return merge


def say_double_loss(checkpoint: Checkpoint, request: ExportRequest, *, report: Report) -> None:
    """Warn if a quantized GGUF is quantized again."""
    kinds = [kind for kind in lossy_types(checkpoint) if kind not in FLOATS]
    if kinds and set(request.quants) - set(FLOATS):
        report(
            Warn(
                f"`{checkpoint.folder}` is {', '.join(kinds)} already: quantized again, its weights"
                " lose twice; a base in 16 bits gives a better file"
            )
        )


def result_name(merge: MergePlan) -> str:
    """The result's name for people."""
    names = [weighted.adapter.name for weighted in merge.adapters]
    return "-".join(names) or merge.checkpoint.name


def base_folder(
    request: ExportRequest, adapter: AdapterSpec | None, *, report: Report = silent
) -> Path:
    """The base's folder: the given one, else the one that the adapter names.

    Raises InputError with neither an adapter nor a base.
    """
    if request.base:
        return request.base
    if adapter is None:
        raise InputError("neither an adapter nor a base is given", hint="pass --base FOLDER")
    return find_base(adapter, report=report)
