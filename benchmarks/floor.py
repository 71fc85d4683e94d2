"""The floor under an export's time: a C program that only reads, converts, quantizes and writes.

It has decant's K-quants and takes the types from a GGUF that decant made of the same base. Nothing
is merged, planned or verified. What no adapter changes must have the export's bytes.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from exporter.core.errors import InputError
from exporter.core.gguf import TensorInfo, read_gguf
from exporter.core.machine import physical_cores
from exporter.core.safetensors import StoredTensor, read_header
from exporter.llamacpp.toolchain import Toolchain, recipe
from exporter.quantize.quantizer import Quantizer

SOURCE = Path(__file__).with_suffix(".c")
UNTOUCHED = "token_embd.weight"
"""A tensor that the benchmark's adapter leaves alone."""


@dataclass(frozen=True, slots=True)
class Floor:
    """The program, and the files of one run."""

    argv: list[str]
    output: Path
    """A copy of the export's file, so that header and places of tensors are the same."""

    def is_right(self, made: Path) -> bool:
        """Whether what no adapter changes has the export's bytes."""
        return untouched(self.output) == untouched(made)


def prepare_floor(base: Path, made: Path, folder: Path, toolchain: Toolchain) -> Floor:
    """Compile the program and lay out its work, in `folder`. made: the export of the base."""
    program, plan, output = folder / "floor", folder / "floor.plan", folder / "floor.gguf"
    command = ["cc", "-O3", "-march=native", "-o", str(program), str(SOURCE), "-pthread", "-ldl"]
    subprocess.run(command, check=True)
    sys.path.insert(0, str(toolchain.source / "gguf-py"))
    plan.write_text("".join(plan_lines(base, made)), encoding="utf-8")
    shutil.copyfile(made, output)
    data_start = min(tensor.offset for tensor in read_gguf(made).tensors)
    with output.open("rb+") as file:  # nothing of the export's tensors is left
        file.truncate(data_start)
        file.truncate(made.stat().st_size)
    variant = Quantizer.load(toolchain).kernels.variant
    kquants = recipe("native").build_native(env=os.environ).path
    libraries = [str(toolchain.library("ggml-base")), str(kquants), f"decant_kquants_{variant}"]
    threads = str(physical_cores())
    return Floor([str(program), str(plan), *libraries, str(output), threads], output)


def plan_lines(base: Path, made: Path) -> list[str]:
    """The program's lines: each tensor of the base, and its place in the GGUF."""
    import gguf

    header = read_gguf(made)
    blocks = header.number(f"{header.architecture}.block_count") or 0
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, blocks)
    places = {tensor.name: tensor for tensor in header.tensors}
    lines = []
    for path in sorted(base.glob("*.safetensors")):
        for stored in read_header(path, error=InputError).values():
            name = names.get_name(stored.name, try_suffixes=(".weight",))
            assert name in places, stored.name
            lines.append(line_of(stored, places[name]))
    return lines


def line_of(stored: StoredTensor, place: TensorInfo) -> str:
    assert stored.dtype == "BF16", stored.name
    columns = stored.shape[-1]
    fields = (
        stored.offset, math.prod(stored.shape[:-1]), columns, place.type.number,
        place.type.row_nbytes(columns), place.offset, stored.path.absolute(),
    )  # fmt: skip
    return " ".join(map(str, fields)) + "\n"


def untouched(path: Path) -> bytes:
    """The bytes of the tensor that no adapter changes."""
    (place,) = (tensor for tensor in read_gguf(path).tensors if tensor.name == UNTOUCHED)
    with path.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.nbytes)
