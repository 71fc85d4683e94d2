"""How much of the adapters' change a file holds, beside how much its types can hold.

A type of few bits may round a small change away, above all where the base already lies on such a
type's grid (trained for 4 bits, or dequantized from them). That is the type's doing and no proof
of a wrong file: so the right values are quantized here as ggml does it, with the change and
without, and the file is held against both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.core.ggml_types import GGMLType

if TYPE_CHECKING:
    import numpy as np

    from exporter.quantize.quantizer import Quantizer

    Rows = np.ndarray[Any, Any]

OFF_ALONE, OFF_TOGETHER = 0.3, 0.05  # of the adapter's change: of one tensor's, of all
OFF_EACH, SURE_OF_EACH = 0.03, 4.0  # the same of one adapter's change, where there are several
SURE = 6.0  # standard errors
BLIND = 0.15  # standard error of the strength from which on it says nothing
LOW = 0.9  # of the change survives: less is worth a note
LOW_ALONE = 0.7  # of one tensor's, where all together hold more than LOW
SLOW_ROWS = 4  # of a tensor whose type takes long to quantize to
SLOW = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
KNOWN = (
    "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "Q1_0", "Q2_0", *SLOW,
)  # fmt: skip
STEPS = {"Q1_0": (-1, 1), "Q2_0": (-1, 0, 1, 2)}
"""By type: what a value may be, in scales of its block (ggml-quants.c)."""
BETTER = ("Q6_K", "Q8_0")  # what may hold a change that others do not
FEW = 3  # tensors that a note names


@dataclass(frozen=True, slots=True)
class Strength:
    """A part of the adapter's change: 1 is all of it."""

    value: float
    error: float
    """Standard error."""


@dataclass(slots=True)
class Along:
    """Sums over values: of some difference times the change, of the change squared, of both."""

    product: float = 0.0
    change: float = 0.0
    noise: float = 0.0

    def add(self, difference: Rows, change: Rows) -> None:
        """Both are (rows, columns)."""
        self.product += float((difference * change).sum())
        self.change += float((change * change).sum())
        self.noise += float((difference * difference * change * change).sum())

    def join(self, other: Along) -> None:
        self.product += other.product
        self.change += other.change
        self.noise += other.noise

    def share(self) -> Strength | None:
        """How much of the change the difference is; None where there is no change."""
        if self.change <= 0:
            return None
        return Strength(self.product / self.change, math.sqrt(self.noise) / self.change)


@dataclass(slots=True)
class Sums:
    """What was measured of one tensor, or of all."""

    lost: Along = field(default_factory=Along)
    """The file's values less the exact ones."""
    astray: Along = field(default_factory=Along)
    """The file's values less what ggml makes of the exact ones."""
    held: Along = field(default_factory=Along)
    """What ggml makes of the exact values less what it makes of the base's."""

    def join(self, other: Sums) -> None:
        self.lost.join(other.lost)
        self.astray.join(other.astray)
        self.held.join(other.held)

    def survives(self) -> Strength | None:
        """How much of the change is in the file."""
        lost = self.lost.share()
        return Strength(1 + lost.value, lost.error) if lost else None

    def off(self, tolerance: float, *, loose: bool) -> float | None:
        """How many times the file holds what its type can hold of the change, if that is wrong.

        Without what ggml makes of the values, how many times it holds the change itself.
        loose: the file was quantized with an importance matrix, which ours were not.
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
    """What all tensors have shown so far."""

    together: Sums = field(default_factory=Sums)
    each: dict[Path, Along] = field(default_factory=dict)
    """Of several adapters, by folder: the file's values less what ggml makes of the exact ones."""
    swallowed: list[Swallowed] = field(default_factory=list)
    better: dict[str, Along] = field(default_factory=dict)
    """What other types would lose of the change in those tensors, by type."""

    def missing(self) -> list[str]:
        """Of several adapters those that are not there in full, in sentences.

        Beside a strong one, a weak one's absence is small.
        """
        found = ((folder, along.share()) for folder, along in self.each.items())
        return [
            f"`{folder.name}` is there {1 + share.value:.2f} times, with the other adapters"
            for folder, share in found
            if share and abs(share.value) > OFF_EACH + SURE_OF_EACH * share.error
        ]

    def note(self) -> str:
        """Where the types hold too little of the change; empty where they do."""
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
    """What the adapters add."""
    parts: Mapping[Path, Rows] = field(default_factory=dict)
    """What each of several adapters adds, by its folder."""


@dataclass(frozen=True, slots=True)
class Requantizer:
    """Quantizes rows as ggml does, and gives back what they then are."""

    quantizer: Quantizer

    def holds(self, kind: GGMLType, columns: int) -> bool:
        return kind.name in KNOWN and columns % kind.block == 0

    def make(self, rows: Rows, kind: GGMLType, rounded: GGMLType | None) -> Rows:
        """Exact rows (n, columns) as they are when stored as `kind`, in float64.

        rounded: the 16-bit type that a merge rounded to before.
        """
        import numpy as np

        values = np.ascontiguousarray(rows, np.float32)
        if rounded is not None:
            from exporter.formats.gguf_file import round_values

            values = round_values(values, rounded)
        packed = self.quantizer.quantize(values, kind, self.importance(kind, rows.shape))
        return dequantized(packed, kind)

    def importance(self, kind: GGMLType, shape: tuple[int, ...]) -> Any:
        """All inputs alike, for types that ggml does not quantize to without an importance."""
        import numpy as np

        from exporter.quantize.imatrix import UNABLE, Importance

        if kind.name not in UNABLE:
            return None
        return Importance(np.ones((1, shape[1]), np.float32), shape[0])


def dequantized(packed: Rows, kind: GGMLType) -> Rows:
    """Packed rows (n, bytes) as llama.cpp's own Python reads them, in float64."""
    import gguf
    import numpy as np

    if kind.name in STEPS:
        return unpacked(packed, kind, STEPS[kind.name])
    with np.errstate(all="ignore"):  # damaged scales are told as damage
        values = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(kind.number))
    found: Rows = values.astype(np.float64).reshape(len(packed), -1)
    return found


def unpacked(packed: Rows, kind: GGMLType, steps: tuple[int, ...]) -> Rows:
    """Packed rows (n, bytes) of what llama.cpp's Python does not read, in float64.

    A block is a scale in float16, then the numbers of its values' steps, the lowest bits first.
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
    """The part of a change that is not along the values themselves.

    A quantizer that shrinks all values a little shall not look like a weaker adapter.
    """
    length = float((expected * expected).sum())
    if length <= 0:
        return change
    return change - expected * (float((change * expected).sum()) / length)


def measure(
    rows: Changed, kind: GGMLType, requantizer: Requantizer, rounded: GGMLType | None
) -> tuple[Sums, dict[str, Along], dict[Path, Along]]:
    """Hold a tensor's rows against the exact ones.

    rounded: the 16-bit type that a merge rounded to before, if it did. Also gives what other
    types would lose, where this one loses much, and the error along each adapter's change.
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
    """Whether it is sure that much of a change is not there."""
    return survives.value + SURE * survives.error < LOW
