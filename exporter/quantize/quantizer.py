"""Chooses the type of each tensor and quantizes its rows, with llama.cpp's code."""

from __future__ import annotations

import ctypes
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.convert.gguf_layout import lay_out
from exporter.core.errors import InputError, ToolchainError
from exporter.core.events import Report, silent
from exporter.core.ggml_types import FLOATS, GGMLType
from exporter.llamacpp.toolchain import run_tool
from exporter.quantize.imatrix import Importance, check_covered, check_fit
from exporter.quantize.kquants import CHUNK_ARGUMENTS, NONE, Kernels, load_kernels
from exporter.quantize.type_recipe import PLAIN, Recipe, check_rules

if TYPE_CHECKING:
    import numpy as np

    from exporter.convert.gguf_layout import Conversion
    from exporter.llamacpp.toolchain import Toolchain

# a line of `llama-quantize --dry-run`; the second type is present if the type changes
DRY_RUN_LINE = re.compile(
    r"^\[ *\d+/ *\d+\] +(?P<name>\S+) +- \[.*\], type = +(?P<old>\w+), "
    r"size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((?P<new>\w+)\))?"
)
# texts of std::regex_error, which differ between C++ libraries
BAD_PATTERN = re.compile(r"failed to quantize:.*(regex|regular expression)", re.IGNORECASE)


def choose_types(
    conversion: Conversion, quant: str, toolchain: Toolchain, recipe: Recipe = PLAIN
) -> dict[str, GGMLType]:
    """The type of every tensor by name, in the finished file's order.

    The converter decides for F32, F16 and BF16; for other quantizations llama.cpp decides, in a dry
    run over a file with all names and shapes and no data. Raises UnsupportedError if it needs an
    importance matrix, InputError if the recipe is for another model, ToolchainError for an
    unexpected output.
    """
    stored = {slot.name: slot.type for slot in conversion.slots}
    if quant in FLOATS:
        return stored
    if recipe.imatrix:
        check_fit(recipe.imatrix, conversion.slots)
    with tempfile.TemporaryDirectory(prefix="decant-") as folder:
        skeleton = Path(folder) / "skeleton.gguf"
        write_skeleton(skeleton, conversion, stored)
        printed = dry_run(skeleton, quant, toolchain, recipe)
    types = parse_dry_run(printed)
    if types.keys() != stored.keys():
        raise ToolchainError(
            f"llama-quantize's dry run named {len(types)} tensors of {len(stored)}",
            hint="rebuild llama.cpp with `decant setup --force`",
        )
    check_rules(recipe, types, conversion.slots)
    check_covered(types, conversion.slots, quant, recipe.imatrix)
    return types


def dry_run(skeleton: Path, quant: str, toolchain: Toolchain, recipe: Recipe) -> str:
    """Run llama-quantize without output. Raises InputError for patterns that it cannot parse."""
    arguments = ["--dry-run", *recipe.arguments(), str(skeleton), quant]
    try:
        return run_tool(toolchain, "llama-quantize", arguments)
    except ToolchainError as error:
        if recipe.tensor_types and BAD_PATTERN.search(error.message):
            rules = ", ".join(map(str, recipe.tensor_types))
            raise InputError(
                f"llama-quantize cannot read a pattern among {rules}",
                hint="it takes regular expressions as ECMAScript has them",
            ) from error
        raise


def write_skeleton(path: Path, conversion: Conversion, stored: dict[str, GGMLType]) -> None:
    """Write a sparse file: a header without the vocabulary, and a hole in place of the data."""
    (header,) = conversion.headers(stored, ftype=conversion.ftype, vocabulary=False)
    slots = {slot.name: slot.shape for slot in conversion.slots}
    with path.open("wb") as file:
        file.write(header.content)
        file.truncate(lay_out(len(header.content), stored, slots).size)


def parse_dry_run(printed: str) -> dict[str, GGMLType]:
    types = {}
    for line in printed.splitlines():
        if found := DRY_RUN_LINE.match(line):
            types[found["name"]] = GGMLType.by_name(found["new"] or found["old"])
    return types


class TypeTraits(ctypes.Structure):
    """The first fields of ggml.h's struct ggml_type_traits."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        (
            "to_float",
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64),
        ),
    )


@dataclass(frozen=True, slots=True)
class Quantizer:
    """ggml's row quantization, called in the built library; it releases the GIL.

    Types for which decant's kernels are proven equal are quantized by those.
    """

    library: ctypes.CDLL
    kernels: Kernels = NONE

    @staticmethod
    def load(toolchain: Toolchain, *, report: Report = silent) -> Quantizer:
        """Load the library and decant's kernels. Raises ToolchainError if it does not load."""
        path = toolchain.library("ggml-base")
        try:
            library = ctypes.CDLL(str(path))
            chunk = library.ggml_quantize_chunk
        except (OSError, AttributeError) as error:
            raise ToolchainError(
                f"cannot use `{path}`: {error}", hint="rebuild it with `decant setup --force`"
            ) from error
        chunk.restype = ctypes.c_size_t
        chunk.argtypes = list(CHUNK_ARGUMENTS)
        return Quantizer(library, load_kernels(toolchain, chunk, env=os.environ, report=report))

    def quantize(
        self,
        rows: np.ndarray[Any, Any],
        kind: GGMLType,
        importance: Importance | None = None,
        *,
        first_row: int = 0,
    ) -> np.ndarray[Any, Any]:
        """Quantize contiguous float32 rows (n, n_per_row) to bytes (n, row_nbytes) of `kind`.

        first_row: the position of the first row in its tensor, which decides the expert's
        importance.
        """
        import numpy as np

        count, n_per_row = rows.shape
        packed = np.empty((count, kind.row_nbytes(n_per_row)), dtype=np.uint8)
        chunk = self.chunk(kind)
        for start, stop, vector in runs(importance, first_row, count):
            nbytes = chunk(
                kind.number, rows[start:].ctypes.data, packed[start:].ctypes.data,
                0, stop - start, n_per_row, None if vector is None else vector.ctypes.data,
            )  # fmt: skip
            assert nbytes == packed[start:stop].nbytes, (kind, rows.shape, nbytes)
        return packed

    def dequantize(
        self, packed: np.ndarray[Any, Any], kind: GGMLType, n_per_row: int
    ) -> np.ndarray[Any, Any]:
        """Dequantize contiguous bytes (n, row_nbytes) of `kind` to float32 rows (n, n_per_row).

        ggml does it fast. A verification uses gguf-py instead, which took no part in writing.
        """
        import numpy as np

        rows = np.empty((packed.shape[0], n_per_row), np.float32)
        if kind.name == "F32":
            rows[:] = packed.view(np.float32)
            return rows
        traits = self.library.ggml_get_type_traits
        traits.restype = ctypes.POINTER(TypeTraits)
        traits(kind.number).contents.to_float(packed.ctypes.data, rows.ctypes.data, rows.size)
        return rows

    def chunk(self, kind: GGMLType) -> Callable[..., int]:
        """The function that quantizes rows to `kind`, with ggml_quantize_chunk's signature."""
        ggml: Callable[..., int] = self.library.ggml_quantize_chunk
        if kind.name not in self.kernels.types:
            return ggml
        # it leaves blocks that are not finite to ggml
        return partial(
            self.kernels.chunk, ctypes.cast(self.library.ggml_quantize_chunk, ctypes.c_void_p)
        )


def runs(
    importance: Importance | None, first_row: int, count: int
) -> Iterator[tuple[int, int, np.ndarray[Any, Any] | None]]:
    """Runs of rows (from, to) with a common importance vector (inputs,), and that vector."""
    if importance is None:
        yield 0, count, None
        return
    start = 0
    while start < count:
        expert, row = divmod(first_row + start, importance.rows_each)
        stop = min(count, start + importance.rows_each - row)
        yield start, stop, importance.vectors[expert]
        start = stop
