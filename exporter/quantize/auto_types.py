"""Chooses the type of each tensor for a size, by the loss of the tensor in every type.

A file's loss is the sum over its tensors of sensitivity x relative squared error (the linearity of
HIGGS, arXiv 2411.17525). The errors are measured on the merged weights; the sensitivities are
constants by the tensor's role, which benchmarks/quality.py proves on models of different shape.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from exporter.convert.gguf_layout import Conversion
from exporter.core.errors import UnsupportedError
from exporter.core.events import Report, silent
from exporter.core.ggml_types import FLOATS, FTYPES, GGMLType
from exporter.core.gguf import read_gguf
from exporter.core.paths import size_text
from exporter.llamacpp.toolchain import Toolchain
from exporter.quantize.allocation import Option, allocate
from exporter.quantize.imatrix import NEEDY, importance
from exporter.quantize.quantizer import Quantizer, choose_types, write_skeleton
from exporter.quantize.size_budget import LIKE, SizeBudget
from exporter.quantize.type_losses import Losses, Weights, measure_losses
from exporter.quantize.type_recipe import Recipe

K_QUANTS = ("IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""Candidates for rows of whole blocks of 256."""
LOW_BITS = ("Q2_K", "IQ2_S")  # further candidates for the smallest sizes
SHORT_ROWS = ("Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0")
"""Candidates for other rows."""
BLOCK = 256  # values
MOST = 8.6  # the most bits per weight that --fit gives: Q8_0; more bits show no difference
STORED_BITS = 7.0  # average bits above which a tensor may keep its stored type of 16 bits
FEWER_BITS = 1.5  # a candidate has at most this many bits less than the file's average
LOW = 3.4  # average bits below which LOW_BITS are candidates
SENSITIVITY = {"attn_v": 5.0, "output": 50.0, "token_embd": 2.0}
"""Tensor's role -> cost of its relative error; that of other matrices is 1.

Measured with gradients on SmolLM2 135M and Gemma 3 270M: values cost 4 to 6, a head 20 to 100.
"""
ROLE = re.compile(r"^(?:\w+\.)?(?:blk\.\d+\.)?(?P<role>\w+)\.weight$")
ROUNDS = 4  # most further choices of types: the header names them, so each changes the size
FileSize: TypeAlias = "Callable[[Mapping[str, GGMLType]], int]"
"""The size in bytes of a whole file with these types."""


@dataclass(frozen=True, slots=True)
class AutoTypes:
    """Chooses types for one model."""

    conversion: Conversion
    recipe: Recipe
    weights: Weights
    toolchain: Toolchain
    quantizer: Quantizer
    threads: int
    report: Report = silent

    def choose(self, file_nbytes: FileSize) -> dict[str, GGMLType]:
        """The type of every tensor by name, in the finished file's order.

        Raises UnsupportedError if no choice of types is as small as the budget, and the errors of
        `choose_types`.
        """
        stock = choose_types(self.conversion, LIKE, self.toolchain, self.recipe)
        if self.recipe.listed_types and self.recipe.budget is None:
            return stock
        budget = self.recipe.budget or SizeBudget()
        limit = self.limit(budget, stock, file_nbytes)
        losses = self.losses(stock, limit)
        chosen = self.within(limit, stock, losses)
        for _ in range(ROUNDS if budget.nbytes is not None else 0):
            assert budget.nbytes is not None
            if (over := file_nbytes(chosen) - budget.nbytes) <= 0:
                break
            limit -= over
            chosen = self.within(limit, stock, losses)
        return chosen

    def limit(
        self, budget: SizeBudget, stock: Mapping[str, GGMLType], file_nbytes: FileSize
    ) -> int:
        """The bytes that the tensors' data may take."""
        if budget.bits is not None:
            return int(self.n_weights * budget.bits / 8)
        if budget.nbytes is not None:
            return budget.nbytes - (file_nbytes(stock) - self.data_nbytes(stock))
        if budget.room is not None:
            with tempfile.TemporaryDirectory(prefix="decant-") as folder:
                skeleton = Path(folder) / "skeleton.gguf"
                write_skeleton(skeleton, self.conversion, dict(stock))
                return min(budget.room(read_gguf(skeleton)), int(self.n_weights * MOST / 8))
        return self.data_nbytes(stock)

    @property
    def n_weights(self) -> int:
        return sum(math.prod(slot.shape) for slot in self.conversion.slots)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {slot.name: slot.shape for slot in self.conversion.slots}

    def data_nbytes(self, types: Mapping[str, GGMLType]) -> int:
        shapes = self.shapes
        return sum(kind.nbytes(shapes[name]) for name, kind in types.items())

    def losses(self, stock: Mapping[str, GGMLType], limit: int) -> Losses:
        """The losses by candidate type; only of quantized tensors whose type no option fixes."""
        matrix = importance(self.recipe.imatrix, self.conversion.slots)
        bits = limit * 8 / self.n_weights
        candidates = {
            slot.name: candidates_of(slot.shape, bits, has_importance=slot.name in matrix)
            for slot in self.conversion.slots
            if stock[slot.name].name not in FLOATS and not self.recipe.fixes(slot.name)
        }
        found = measure_losses(
            self.conversion.slots, self.weights, candidates, matrix, self.quantizer,
            threads=self.threads, report=self.report,
        )  # fmt: skip
        for slot in self.conversion.slots:
            if slot.name in found and slot.type.name != "F32" and bits > STORED_BITS:
                found[slot.name][slot.type] = 0.0  # as it is stored
        return found

    def within(
        self, limit: int, stock: Mapping[str, GGMLType], losses: Losses
    ) -> dict[str, GGMLType]:
        """The best types whose data take `limit` bytes or less. Raises UnsupportedError."""
        shapes, is_tied = self.shapes, "output.weight" not in stock
        options = {
            name: [
                Option(kind, kind.nbytes(shapes[name]), sensitivity(name, is_tied=is_tied) * lost)
                for kind, lost in by_type.items()
            ]
            for name, by_type in losses.items()
        }
        others = self.data_nbytes({n: k for n, k in stock.items() if n not in losses})
        chosen = allocate(options, limit - others)
        if chosen is None:
            least = sum(min(one.nbytes for one in found) for found in options.values()) + others
            raise UnsupportedError(
                f"no types make this model as small as {size_text(max(0, limit))}:"
                f" the smallest that are chosen here give {size_text(least)}",
                hint="ask for a larger size, or name a quantization, such as -q IQ2_XS",
            )
        return {name: chosen.get(name, kind) for name, kind in stock.items()}


def candidates_of(
    shape: tuple[int, ...], bits: float, *, has_importance: bool
) -> tuple[GGMLType, ...]:
    """The types that a tensor may get; bits: average bits per weight of the file."""
    if shape[-1] % BLOCK:
        kinds = map(GGMLType.by_name, SHORT_ROWS)
        return tuple(kind for kind in kinds if shape[-1] % kind.block == 0)
    kinds = map(GGMLType.by_name, (*(LOW_BITS if bits < LOW else ()), *K_QUANTS))
    return tuple(
        kind
        for kind in kinds
        if (has_importance or kind.name not in NEEDY) and bits_of(kind) > bits - FEWER_BITS
    )


def bits_of(kind: GGMLType) -> float:
    """Bits per weight of a type."""
    return kind.block_nbytes * 8 / kind.block


def sensitivity(name: str, *, is_tied: bool) -> float:
    """The cost of a tensor's relative error; is_tied: whether the embedding is the head, too."""
    found = ROLE.match(name)
    role = found["role"] if found else ""
    return SENSITIVITY.get("output" if is_tied and role == "token_embd" else role, 1.0)


def file_type(types: Mapping[str, GGMLType], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The llama_ftype of a file, by the type that most of its quantized weights have."""
    weights: Counter[str] = Counter()
    for name, kind in types.items():
        if kind.name not in FLOATS:
            weights[kind.name] += math.prod(shapes[name])
    most = weights.most_common(1)
    name = most[0][0] if most else LIKE
    return FTYPES.get(name, FTYPES.get(f"{name}_M", FTYPES[LIKE]))
