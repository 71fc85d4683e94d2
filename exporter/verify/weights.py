"""Every merged tensor of a GGUF, and some of the others, against rows computed anew.

Two questions are asked of them. Is each value as near as its type can come to it? That finds what
is permuted, damaged or from elsewhere. And is the adapter's change there, in full? A few bits may
hide a change that is smaller than their step from the first question, but not from the second:
the error's part along the change is measured over thousands of values.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exporter.core.events import Progress, Report, silent
from exporter.core.gguf import GGUFFile, TensorInfo
from exporter.slots import Conversion, Slot
from exporter.verify.bounds import allowed_error, least_likeness, likeness
from exporter.verify.replay import sources
from exporter.verify.report import Check
from exporter.verify.rows import MergedRows, Reference
from exporter.verify.trace import Origin, compute, trace

if TYPE_CHECKING:
    import numpy as np
    import torch

SEED = 20
POOL = 64  # rows of a kind of tensor whose origins are known, to choose from
UNCHANGED = 48  # tensors that no adapter changes, of which rows are checked too
OFF_ALONE, OFF_TOGETHER = 0.3, 0.05  # of the adapter's change: of one tensor's, of all
SURE = 6.0  # standard errors
BLIND = 0.15  # standard error of the strength from which on it says nothing
DIGITS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Strength:
    """How much of the adapter's change a file holds: 1 is all of it."""

    value: float
    error: float
    """Standard error."""

    def is_off(self, tolerance: float) -> bool:
        return abs(self.value - 1) > tolerance + SURE * self.error


@dataclass(slots=True)
class Along:
    """Sums over values: of the error times the change, of the change squared, of both squared."""

    product: float = 0.0
    change: float = 0.0
    noise: float = 0.0

    def add(self, error: np.ndarray[Any, Any], change: np.ndarray[Any, Any]) -> None:
        self.product += float((error * change).sum())
        self.change += float((change * change).sum())
        self.noise += float((error * error * change * change).sum())

    def strength(self) -> Strength | None:
        if self.change <= 0:
            return None
        return Strength(1 + self.product / self.change, math.sqrt(self.noise) / self.change)


@dataclass(slots=True)
class Findings:
    """What the tensors have shown so far."""

    problems: list[str] = field(default_factory=list)
    merged: int = 0
    others: int = 0
    values: int = 0
    worst: float = 0.0
    """The largest error, as a part of what its type allows."""
    weaker: list[str] = field(default_factory=list)
    together: Along = field(default_factory=Along)


@dataclass(slots=True)
class Weights:
    """A model's tensors as they should be; asked of each file that was made of them."""

    conversion: Conversion
    reference: Reference
    count: int
    """Rows of each tensor; 0 for all."""
    rounded: bool
    """Whether the merge rounded to the base's type, as --merge-dtype base does."""
    by_importance: bool = False
    """Whether the files were quantized with an importance matrix."""
    kinds: dict[object, tuple[np.ndarray[Any, Any], Origin | None]] = field(default_factory=dict)
    """Rows and their origins, by what slots of a kind have in common."""

    def check(self, file: GGUFFile, *, report: Report = silent) -> Check:
        found = Findings()
        infos = {info.name: info for info in file.tensors}
        found.problems += differing_layout(self.conversion.slots, infos)
        chosen = self.choose()
        for done, slot in enumerate(chosen):
            if slot.name in infos and infos[slot.name].shape == slot.shape:
                self.check_slot(slot, infos[slot.name], found)
            report(Progress("checking", done + 1, len(chosen), "tensors"))
        return conclude(found)

    def choose(self) -> list[Slot]:
        """All changed slots, and a few of the others."""
        import numpy as np

        slots = self.conversion.slots
        changed = [slot for slot in slots if self.changes(slot)]
        others = [slot for slot in slots if not self.changes(slot)]
        if self.count and len(others) > UNCHANGED:
            random = np.random.default_rng(SEED)
            others = [others[i] for i in sorted(random.permutation(len(others))[:UNCHANGED])]
        return changed + others

    def changes(self, slot: Slot) -> bool:
        return any(name in self.reference.plan.changes for name in sources(slot))

    def check_slot(self, slot: Slot, info: TensorInfo, found: Findings) -> None:
        import numpy as np

        rows, origin = self.origin(slot)
        stored = read_rows(info, rows)
        expected, change, slack = self.expect(slot, rows, origin)
        if origin is not None and self.judge(info, stored, expected, slack)[0] > 1:
            # slots of a kind may differ after all: ask for this one alone
            origin = trace(slot, rows, self.shape)
            expected, change, slack = self.expect(slot, rows, origin)
        ratio, text = self.judge(info, stored, expected, slack)
        found.values += stored.size
        found.worst = max(found.worst, ratio)
        if ratio > 1:
            found.problems.append(f"`{slot.name}` ({info.type.name}) {text}")
        if not self.changes(slot):
            found.others += 1
            return
        found.merged += 1
        if change is not None and np.isfinite(stored).all():
            alone = measure(stored - expected, change, expected, found)
            if ratio <= 1 and alone and alone.is_off(OFF_ALONE):
                found.weaker.append(
                    f"`{slot.name}` holds {alone.value:.2f} times the adapter's change"
                )

    def judge(
        self,
        info: TensorInfo,
        stored: np.ndarray[Any, Any],
        expected: np.ndarray[Any, Any],
        slack: np.ndarray[Any, Any],
    ) -> tuple[float, str]:
        """The largest error as a part of what is allowed, and a sentence about where it is."""
        import numpy as np

        if not np.isfinite(stored).all():
            return math.inf, "holds values that are no numbers"
        if (near := likeness(stored, expected)) < least_likeness(info.type):
            return math.inf, f"is like another tensor (cosine {near:.2f})"
        allowed = allowed_error(
            expected, info.type, rounded=self.rounded, by_importance=self.by_importance
        )
        error, allowed = np.abs(stored - expected), allowed + slack
        part = np.divide(error, allowed, out=np.where(error > 0, np.inf, 0.0), where=allowed > 0)
        at = np.unravel_index(int(part.argmax()), part.shape)
        return float(part[at]), (
            f"is {stored[at]:.6g} where base and adapter give {expected[at]:.6g};"
            f" the type allows an error of {allowed[at]:.2g}"
        )

    def origin(self, slot: Slot) -> tuple[np.ndarray[Any, Any], Origin | None]:
        """Some of the slot's rows, and where they come from."""
        import numpy as np

        random = np.random.default_rng([SEED, *slot.name.encode()])
        total = math.prod(slot.shape[:-1]) if slot.shape else 1
        if not self.count:
            rows = np.arange(total)
            return rows, trace(slot, rows, self.shape)
        names = sources(slot)
        kind = (DIGITS.sub("#", slot.name), slot.shape, tuple(map(self.shape, names)))
        if kind not in self.kinds:
            pool = np.sort(random.permutation(total)[:POOL])
            self.kinds[kind] = pool, trace(slot, pool, self.shape)
        pool, origin = self.kinds[kind]
        some = np.sort(random.permutation(len(pool))[: self.count])
        return pool[some], origin.take(some) if origin else None

    def shape(self, name: str) -> tuple[int, ...]:
        return self.reference.exact.shape(name)

    def expect(
        self, slot: Slot, rows: np.ndarray[Any, Any], origin: Origin | None
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None, np.ndarray[Any, Any]]:
        """What the rows should hold, what the adapters changed in it, and float32's allowance."""
        import numpy as np

        if origin is None:
            expected = compute(slot, rows, self.read_whole)
            return expected, None, np.abs(expected).max(axis=1, keepdims=True) * 2.0**-18
        names = sources(slot)
        expected, slack = np.zeros(origin.row.shape), np.zeros(origin.row.shape)
        change: np.ndarray[Any, Any] | None = np.zeros(origin.row.shape)
        for number, name in enumerate(names):
            here = origin.tensor == number
            if not here.any():
                continue
            numbers, places = np.unique(origin.row[here], return_inverse=True)
            merged: MergedRows = self.reference.rows(name, numbers)
            at = places.reshape(-1), origin.column[here]
            expected[here], slack[here] = merged.after[at], merged.slack[at]
            if merged.before is not None and change is not None:
                change[here] = (merged.after - merged.before)[at]
            elif name in self.reference.plan.changes:
                change = None
        factor = np.abs(origin.factor)
        if change is not None:
            change = change * origin.factor
        return expected * origin.factor + origin.offset, change, slack * factor

    def read_whole(self, name: str) -> torch.Tensor:
        """A whole tensor, computed here row by row."""
        import numpy as np
        import torch

        shape = self.shape(name)
        rows = np.arange(math.prod(shape[:-1]) if shape else 1)
        return torch.from_numpy(self.reference.rows(name, rows).after).reshape(shape)


def differing_layout(slots: tuple[Slot, ...], infos: dict[str, TensorInfo]) -> list[str]:
    """Tensors that only one side has, or that have another shape."""
    wanted = {slot.name: slot.shape for slot in slots}
    problems = [f"`{name}` is missing" for name in wanted if name not in infos]
    problems += [f"`{name}` does not belong to this model" for name in infos if name not in wanted]
    problems += [
        f"`{name}` is {list(infos[name].shape)} and should be {list(shape)}"
        for name, shape in wanted.items()
        if name in infos and infos[name].shape != shape
    ]
    return problems


def read_rows(info: TensorInfo, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Some rows of a tensor, dequantized by llama.cpp's own Python, in float64."""
    import gguf
    import numpy as np

    columns = info.shape[-1] if info.shape else 1
    count = math.prod(info.shape[:-1]) if info.shape else 1
    data = np.memmap(
        info.path, np.uint8, "r", info.offset, shape=(count, info.type.row_nbytes(columns))
    )
    kind = gguf.GGMLQuantizationType(info.type.number)
    taken = np.ascontiguousarray(data[rows])
    with np.errstate(all="ignore"):  # damaged scales are told as damage
        values = gguf.quants.dequantize(taken, kind).astype(np.float64)
    found: np.ndarray[Any, Any] = values.reshape(len(rows), columns)
    return found


def measure(
    error: np.ndarray[Any, Any],
    change: np.ndarray[Any, Any],
    expected: np.ndarray[Any, Any],
    found: Findings,
) -> Strength | None:
    """Note how much of the change one tensor holds.

    Only the part of the change that is not along the values themselves counts: a quantizer
    that shrinks all values a little shall not look like a weaker adapter.
    """
    length = float((expected * expected).sum())
    if length > 0:
        change = change - expected * (float((change * expected).sum()) / length)
    alone = Along()
    alone.add(error, change)
    found.together.add(error, change)
    return alone.strength()


def conclude(found: Findings) -> Check:
    strength = found.together.strength()
    problems = [*found.problems, *found.weaker]
    if strength and strength.is_off(OFF_TOGETHER):
        problems.append(
            f"the merged tensors together hold {strength.value:.2f} times the adapter's change"
        )
    detail = (
        f"{found.merged} merged and {found.others} other tensors, {found.values} values;"
        f" largest error {found.worst:.2f} of what its type allows"
    )
    numbers: dict[str, float] = {
        "merged": found.merged, "others": found.others, "values": found.values,
        "worst": found.worst,
    }  # fmt: skip
    if strength and strength.error < BLIND:
        detail += f"; the adapter is there {strength.value:.3f} times (± {strength.error:.3f})"
        numbers |= {"strength": strength.value, "strength_error": strength.error}
    elif strength:
        detail += "; the adapter's change is too small to be measured at this quantization"
    return Check("weights", tuple(problems), detail, numbers=numbers)
