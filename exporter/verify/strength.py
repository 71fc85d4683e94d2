"""Measures the share of the adapters' change that a file holds, and that its types can hold.

A type of few bits may round a small change away, above all if the base already lies on such a
type's grid (trained for 4 bits, or dequantized from them). That is the type's loss and no proof of
a wrong file: so the exact values are quantized as ggml does it, with the change and without, and
the file is compared with both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.core.buffer_pool import Pool
from exporter.core.ggml_types import GGMLType

if TYPE_CHECKING:
    import numpy as np

    from exporter.quantize.quantizer import Quantizer

    Rows = np.ndarray[Any, Any]

OFF_ALONE, OFF_TOGETHER = 0.3, 0.05  # allowed errors of the strength: of one tensor, of all
OFF_EACH, SURE_OF_EACH = 0.03, 4.0  # the same for one of several adapters
SURE = 6.0  # standard errors
BLIND = 0.15  # with a larger standard error, a strength proves nothing
LOW = 0.9  # share of the change that survives; less is noted
LOW_ALONE = 0.7  # the same for one tensor, if all together hold more than LOW
SLOW_ROWS = 4  # rows of a tensor whose type takes long to quantize
SLOW = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
KNOWN = (
    "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "Q1_0", "Q2_0", *SLOW,
)  # fmt: skip
STEPS = {"Q1_0": (-1, 1), "Q2_0": (-1, 0, 1, 2)}
"""Type -> the steps of a value, in scales of its block (ggml-quants.c)."""
BETTER = ("Q6_K", "Q8_0")  # types that may hold a change which others lose
FEW = 3  # tensors named in a note


@dataclass(frozen=True, slots=True)
class Strength:
    """A share of the adapter's change: 1 is all of it."""

    value: float
    error: float
    """The standard error of the value."""


@dataclass(slots=True)
class Along:
    """Sums over values: difference * change, change squared, and both squared."""

    product: float = 0.0
    change: float = 0.0
    noise: float = 0.0

    def add(self, difference: Rows, change: Rows) -> None:
        """Add differences and changes, both (rows, columns)."""
        self.product += float((difference * change).sum())
        self.change += float((change * change).sum())
        self.noise += float((difference * difference * change * change).sum())

    def join(self, other: Along) -> None:
        self.product += other.product
        self.change += other.change
        self.noise += other.noise

    def share(self) -> Strength | None:
        """The share of the change in the difference; None without a change."""
        if self.change <= 0:
            return None
        return Strength(self.product / self.change, math.sqrt(self.noise) / self.change)


@dataclass(slots=True)
class Sums:
    """The measurements of one tensor, or of all."""

    lost: Along = field(default_factory=Along)
    """The file's values minus the exact ones."""
    astray: Along = field(default_factory=Along)
    """The file's values minus the requantized exact ones."""
    held: Along = field(default_factory=Along)
    """The requantized exact values minus the requantized base's."""

    def join(self, other: Sums) -> None:
        self.lost.join(other.lost)
        self.astray.join(other.astray)
        self.held.join(other.held)

    def survives(self) -> Strength | None:
        """The share of the change in the file."""
        lost = self.lost.share()
        return Strength(1 + lost.value, lost.error) if lost else None

    def off(self, tolerance: float, *, loose: bool) -> float | None:
        """The share of the change, relative to what the type can hold; None if it is right.

        Without requantized values, it is the share of the change itself. loose: the file was
        quantized with an importance matrix, the comparison without one.
        """
        astray, held = self.astray.share(), self.held.share()
        if astray is None or held is None:
            lost = self.lost.share()
            if lost and abs(lost.value) > tolerance + SURE * lost.error:
                return 1 + lost.value
            return None
        room = min(1.0, max(held.value, 0.0))
        allowed = tolerance if loose else tolerance * room
        if abs(astray.value) <= allowed + SURE * astray.error:
            return None
        return 1 + astray.value / max(room, tolerance)


@dataclass(frozen=True, slots=True)
class Swallowed:
    """A tensor whose type holds little of its change."""

    name: str
    kind: str
    share: float


@dataclass(slots=True)
class Strengths:
    """The measurements of all tensors so far."""

    together: Sums = field(default_factory=Sums)
    each: dict[Path, Along] = field(default_factory=dict)
    """For several adapters, by folder: the file's values minus the requantized exact ones."""
    swallowed: list[Swallowed] = field(default_factory=list)
    better: dict[str, Along] = field(default_factory=dict)
    """Type -> the loss of the change in the swallowed tensors if they had that type."""

    def missing(self) -> list[str]:
        """Sentences about those of several adapters whose change is not fully in the file.

        Beside a strong adapter, a missing weak one changes little.
        """
        found = ((folder, along.share()) for folder, along in self.each.items())
        return [
            f"`{folder.name}` is there {1 + share.value:.2f} times, with the other adapters"
            for folder, share in found
            if share and abs(share.value) > OFF_EACH + SURE_OF_EACH * share.error
        ]

    def note(self) -> str:
        """A note if the types hold too little of the change; empty otherwise."""
        whole = self.together.survives()
        worst = sorted(self.swallowed, key=lambda found: found.share)[:FEW]
        if not whole or not worst:
            return ""
        if not is_low(whole) and worst[0].share > LOW_ALONE:
            return ""
        named = ", ".join(f"`{one.name}` {one.kind} {one.share:.0%}" for one in worst)
        could = " and ".join(
            f"`-q {kind}` {min(1.0, 1 + share.value):.0%}"
            for kind, along in self.better.items()
            if (share := along.share())
        )
        return (
            f"{whole.value:.0%} of the adapter's change survives in this file; the rest is smaller"
            " than the steps of its types, as happens where the base lies on a 4-bit grid. Least in"
            f" {named}. Of the {len(self.swallowed)} such tensors' change"
            f" {could or 'a larger type'} would hold; `--to lora` keeps the adapter whole, beside"
            " the base"
        )


@dataclass(frozen=True, slots=True)
class Changed:
    """Some rows of a tensor, each (n, columns)."""

    stored: Rows
    expected: Rows
    change: Rows
    """The adapters' change."""
    parts: Mapping[Path, Rows] = field(default_factory=dict)
    """The change of each of several adapters, by folder."""


@dataclass(frozen=True, slots=True)
class Requantizer:
    """Quantizes rows as ggml does and returns the dequantized values."""

    quantizer: Quantizer

    def holds(self, kind: GGMLType, columns: int) -> bool:
        return kind.name in KNOWN and columns % kind.block == 0

    def make(self, rows: Rows, kind: GGMLType, rounded: GGMLType | None) -> Rows:
        """Rows (n, columns) after storing them as `kind`, in float64.

        rounded: the 16-bit type to which the merge rounded before.
        """
        import numpy as np

        values = np.ascontiguousarray(rows, np.float32)
        if rounded is not None:
            import torch

            from exporter.formats.gguf_file import in_float32

            values = in_float32(torch.from_numpy(values), rounded, Pool())
        packed = self.quantizer.quantize(values, kind, self.importance(kind, rows.shape))
        return dequantized(packed, kind)

    def importance(self, kind: GGMLType, shape: tuple[int, ...]) -> Any:
        """Equal importance of all inputs, for types that ggml quantizes only with one."""
        import numpy as np

        from exporter.quantize.imatrix import UNABLE, Importance

        if kind.name not in UNABLE:
            return None
        return Importance(np.ones((1, shape[1]), np.float32), shape[0])


def dequantized(packed: Rows, kind: GGMLType) -> Rows:
    """Dequantize packed rows (n, bytes) with llama.cpp's Python to (n, columns) in float64."""
    import gguf
    import numpy as np

    if kind.name in STEPS:
        return unpacked(packed, kind, STEPS[kind.name])
    with np.errstate(all="ignore"):  # damaged scales show up in the comparison
        values = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(kind.number))
    found: Rows = values.astype(np.float64).reshape(len(packed), -1)
    return found


def unpacked(packed: Rows, kind: GGMLType, steps: tuple[int, ...]) -> Rows:
    """Dequantize packed rows (n, bytes) of types that llama.cpp's Python lacks, in float64.

    A block is a scale in float16, then the step numbers of its values, lowest bits first.
    """
    import numpy as np

    blocks = packed.reshape(-1, kind.nbytes((kind.block,)))
    scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float64)
    bits = (len(steps) - 1).bit_length()
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (blocks[:, 2:, None] >> shifts) & (len(steps) - 1)  # (block, byte, value)
    found: Rows = np.array(steps, np.float64)[numbers].reshape(len(blocks), -1) * scales
    return found.reshape(len(packed), -1)


def aside(change: Rows, expected: Rows) -> Rows:
    """The part of a change (n, columns) that is orthogonal to the values.

    A quantizer that shrinks all values a little must not look like a weaker adapter.
    """
    length = float((expected * expected).sum())
    if length <= 0:
        return change
    return change - expected * (float((change * expected).sum()) / length)


def measure(
    rows: Changed, kind: GGMLType, requantizer: Requantizer, rounded: GGMLType | None
) -> tuple[Sums, dict[str, Along], dict[Path, Along]]:
    """Compare a tensor's rows with the exact ones.

    rounded: the 16-bit type to which the merge rounded before, if it did. Also returns the loss
    with other types if this one loses much, and the error along each adapter's change.
    """
    stored, expected, change = rows.stored, rows.expected, rows.change
    found, each = Sums(), {folder: Along() for folder in rows.parts}
    along = aside(change, expected)
    found.lost.add(stored - expected, along)
    if not requantizer.holds(kind, expected.shape[1]):
        return found, {}, {}
    some = slice(SLOW_ROWS) if kind.name in SLOW else slice(None)
    right = requantizer.make(expected[some], kind, rounded)
    plain = requantizer.make((expected - change)[some], kind, rounded)
    found.astray.add(stored[some] - right, along[some])
    found.held.add(right - plain, along[some])
    for folder, part in rows.parts.items():
        each[folder].add(stored[some] - right, aside(part, expected)[some])
    survives = found.survives()
    better: dict[str, Along] = {}
    if survives and is_low(survives):
        for name in BETTER:
            other = GGMLType.by_name(name)
            if requantizer.holds(other, expected.shape[1]):
                better[name] = Along()
                better[name].add(requantizer.make(expected, other, rounded) - expected, along)
    return found, better, each


def is_low(survives: Strength) -> bool:
    """Whether much of a change is surely missing."""
    return survives.value + SURE * survives.error < LOW
