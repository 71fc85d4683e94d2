"""The numbers GGUF files and llama.cpp share: tensor types and file types.

Numbers and block sizes come from ggml.h and llama.h; tests compare them with the built library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from exporter.core.errors import UnsupportedError
from exporter.core.near_names import did_you_mean


@dataclass(frozen=True, slots=True)
class GGMLType:
    """A storage type: blocks of `block` values, `block_nbytes` bytes each."""

    name: str
    number: int
    block: int
    block_nbytes: int

    @staticmethod
    def by_number(number: int) -> GGMLType:
        return _BY_NUMBER[number]

    @staticmethod
    def by_name(name: str) -> GGMLType:
        """The type llama.cpp prints as `name`, in either case."""
        return _BY_NAME[name.upper()]

    def row_nbytes(self, n_per_row: int) -> int:
        assert n_per_row % self.block == 0, (self.name, n_per_row)
        return n_per_row // self.block * self.block_nbytes

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor with this shape, (rows, columns) or any other with the rows first."""
        return math.prod(shape[:-1]) * self.row_nbytes(shape[-1]) if shape else self.block_nbytes


GGML_TYPES = tuple(
    GGMLType(*row)
    for row in (
        ("F32", 0, 1, 4), ("F16", 1, 1, 2), ("Q4_0", 2, 32, 18), ("Q4_1", 3, 32, 20),
        ("Q5_0", 6, 32, 22), ("Q5_1", 7, 32, 24), ("Q8_0", 8, 32, 34), ("Q8_1", 9, 32, 36),
        ("Q2_K", 10, 256, 84), ("Q3_K", 11, 256, 110), ("Q4_K", 12, 256, 144),
        ("Q5_K", 13, 256, 176), ("Q6_K", 14, 256, 210), ("Q8_K", 15, 256, 292),
        ("IQ2_XXS", 16, 256, 66), ("IQ2_XS", 17, 256, 74), ("IQ3_XXS", 18, 256, 98),
        ("IQ1_S", 19, 256, 50), ("IQ4_NL", 20, 32, 18), ("IQ3_S", 21, 256, 110),
        ("IQ2_S", 22, 256, 82), ("IQ4_XS", 23, 256, 136), ("I8", 24, 1, 1), ("I16", 25, 1, 2),
        ("I32", 26, 1, 4), ("I64", 27, 1, 8), ("F64", 28, 1, 8), ("IQ1_M", 29, 256, 56),
        ("BF16", 30, 1, 2), ("TQ1_0", 34, 256, 54), ("TQ2_0", 35, 256, 66),
        ("MXFP4", 39, 32, 17), ("NVFP4", 40, 64, 36), ("Q1_0", 41, 128, 18), ("Q2_0", 42, 64, 18),
    )
)  # fmt: skip
_BY_NUMBER = {kind.number: kind for kind in GGML_TYPES}
_BY_NAME = {kind.name: kind for kind in GGML_TYPES}

FTYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16,
    "Q5_K_M": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "Q2_K_S": 21, "IQ3_XS": 22,
    "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25, "IQ3_S": 26, "IQ3_M": 27, "IQ2_S": 28, "IQ2_M": 29,
    "IQ4_XS": 30, "IQ1_M": 31, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "MXFP4_MOE": 38,
    "Q1_0": 40, "Q2_0": 41,
}  # fmt: skip
"""llama_ftype numbers (llama.h) of the quantizations that `decant export -q` makes."""

AUTO = "AUTO"
"""The quantization whose types are chosen tensor by tensor, to fit a size."""
QUANTS = (*FTYPES, AUTO)
"""All values of the option `-q`."""

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}  # llama-quantize's own
FLOATS = ("F32", "F16", "BF16")
"""Quantizations that the converter makes without llama-quantize."""


def parse_quant(text: str) -> str:
    """Normalize the name of a quantization. Raises UnsupportedError for an unknown one."""
    name = text.upper()
    name = ALIASES.get(name, name)
    if name not in QUANTS:
        raise UnsupportedError(
            f"unknown quantization {text!r}",
            hint=did_you_mean(text, QUANTS, f"choose among {', '.join(QUANTS)}", most=3),
        )
    return name


NO_TARGET = ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")
"""ggml types that no tensor can be quantized to."""


def parse_type(text: str) -> GGMLType:
    """The type of a single tensor, such as q8_0 in either case. Raises UnsupportedError."""
    name = text.upper()
    if name not in _BY_NAME or name in NO_TARGET:
        choices = [kind.name for kind in GGML_TYPES if kind.name not in NO_TARGET]
        raise UnsupportedError(
            f"unknown tensor type {text!r}",
            hint=did_you_mean(text, choices, f"choose among {', '.join(choices)}", most=3),
        )
    return _BY_NAME[name]
