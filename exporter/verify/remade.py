"""Remakes a model for comparison: quantized like a file, and not quantized at all.

The first shows the loss by the file's types, also if llama.cpp computes the model differently from
transformers; the second shows whether it does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.convert.gguf_layout import lay_out
from exporter.convert.to_gguf import Outtype, convert
from exporter.core.errors import UnsupportedError
from exporter.core.events import Report, Step, silent
from exporter.core.ggml_types import FTYPES, GGMLType
from exporter.core.gguf import GGUFFile
from exporter.core.machine import cores
from exporter.core.silence import one_thread, quiet_libraries
from exporter.formats.gguf_file import GGUFPlan, Group, check_space, write_files
from exporter.llamacpp.converter_import import imported
from exporter.merge.apply import MergedTensors
from exporter.merge.result_files import result_folder
from exporter.quantize.imatrix import UNABLE, Importance
from exporter.quantize.quantizer import Quantizer
from exporter.verify.strength import KNOWN

if TYPE_CHECKING:
    from exporter.convert.gguf_layout import Conversion
    from exporter.llamacpp.toolchain import Toolchain
    from exporter.merge.operations import MergePlan

FLOAT32 = 4  # bytes
SMALL = 2 << 30  # bytes of a float32 model; a larger model is remade in float16


def ignored_by_llamacpp(plan: MergePlan, toolchain: Toolchain) -> tuple[str, ...]:
    """Settings of a model that llama.cpp ignores, as sentences; reads no weight."""
    with imported(toolchain), quiet_libraries(), result_folder(plan) as settings:
        return convert(MergedTensors(plan), settings, toolchain, model_name="verify").ignored


@dataclass(frozen=True, slots=True)
class Remade:
    """The two files made for comparison."""

    alike: Path
    """The file in the types of the verified one."""
    exact: Path
    exact_type: str
    """F32, or F16 for a large model."""


def remake(
    plan: MergePlan,
    file: GGUFFile,
    folder: Path,
    toolchain: Toolchain,
    *,
    report: Report = silent,
) -> Remade:
    """Export a plan to `folder` with both kinds of types, in one pass.

    Raises SpaceError if the disk has no room, UnsupportedError for a type that cannot be quantized
    to.
    """
    stored = {info.name: info.type for info in file.tensors}
    with (
        imported(toolchain),
        quiet_libraries(),
        one_thread(),
        result_folder(plan) as settings,
    ):
        tensors = MergedTensors(plan)
        count = sum(math.prod(tensors.shape(name)) for name in tensors.names)
        exact: Outtype = "F32" if count * FLOAT32 <= SMALL else "F16"
        conversion = convert(tensors, settings, toolchain, outtype=exact, model_name="verify")
        alike = {slot.name: stored.get(slot.name, slot.type) for slot in conversion.slots}
        plain = {slot.name: slot.type for slot in conversion.slots}
        made = Remade(folder / "alike.gguf", folder / "exact.gguf", exact)
        plans = [
            planned(made.alike, alike, conversion),
            planned(made.exact, plain, conversion),
        ]
        check_space(plans)
        report(Step("making the model again, quantized alike and unquantized"))
        group = Group(plans, conversion.slots, tensors.read)
        write_files([group], Quantizer.load(toolchain), threads=cores(), report=report)
    return made


def planned(path: Path, types: Mapping[str, GGMLType], conversion: Conversion) -> GGUFPlan:
    """The plan of a file whose tensors have these types. Raises UnsupportedError for unknown
    ones.
    """
    unknown = [name for name, kind in types.items() if kind.name not in (*KNOWN, "F32")]
    if unknown:
        raise UnsupportedError(
            f"`{unknown[0]}` is {types[unknown[0]].name}, to which decant cannot quantize",
            hint="`decant verify --light` checks its rows",
        )
    shapes = {slot.name: slot.shape for slot in conversion.slots}
    (header,) = conversion.headers(dict(types), ftype=FTYPES["F32"])
    importance = {name: alike(shapes[name]) for name, k in types.items() if k.name in UNABLE}
    layout = lay_out(len(header.content), dict(types), shapes)
    return GGUFPlan(path, "", header.content, dict(types), layout, {}, importance)


def alike(shape: tuple[int, ...]) -> Importance:
    """Equal importance of all inputs (1, inputs): ggml requires one for the smallest types."""
    import numpy as np

    return Importance(np.ones((1, shape[-1]), np.float32), math.prod(shape[:-1]))
