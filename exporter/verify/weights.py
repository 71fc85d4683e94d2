"""Compares every merged tensor of a GGUF, and some others, with rows that are computed again.

It tests two things. Is each value as near as its type allows? That finds permuted, damaged and
foreign values. And is the adapter's whole change there? The first test does not see a change that
is smaller than the step of a type of few bits. The second does: it measures the error's part along
the change over thousands of values.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.convert.gguf_layout import Conversion, Slot
from exporter.core.events import Progress, Report, silent
from exporter.core.gguf import GGUFFile, TensorInfo
from exporter.verify.bounds import allowed_error, least_likeness, likeness, shares_of
from exporter.verify.loading import TOO_LARGE
from exporter.verify.replay import sources
from exporter.verify.rows import MergedRows, Reference
from exporter.verify.strength import (
    BLIND,
    OFF_ALONE,
    OFF_TOGETHER,
    Along,
    Changed,
    Requantizer,
    Strengths,
    Swallowed,
    dequantized,
    is_low,
    measure,
)
from exporter.verify.trace import ValueOrigin, compute, trace
from exporter.verify.verification import Check

if TYPE_CHECKING:
    import numpy as np
    import torch

    ExpectedRows = tuple[
        np.ndarray[Any, Any],
        np.ndarray[Any, Any] | None,
        np.ndarray[Any, Any],
        dict[Path, np.ndarray[Any, Any]],
    ]

SEED = 20  # of the choice of rows
POOL = 64  # rows whose origins are traced, per group of slots
UNCHANGED = 48  # number of unchanged tensors whose rows are checked, too
HALF_ENDS = 65_504  # the largest float16
NO_ROOM = "cannot hold"
OTHER_BASE = "is it of this base, adapter and scale? if so, export it again"
OTHER_ADAPTER = "is it of this adapter, at this scale? if so, export it again"
DIGITS = re.compile(r"\d+")


@dataclass(slots=True)
class WeightFindings:
    """The results of the tensors so far."""

    problems: list[str] = field(default_factory=list)
    merged: int = 0
    others: int = 0
    values: int = 0
    worst: float = 0.0
    """The largest error relative to what its type allows."""
    weaker: list[str] = field(default_factory=list)
    strengths: Strengths = field(default_factory=Strengths)


@dataclass(slots=True)
class ExpectedWeights:
    """The expected tensors of a model; checked against each file made from it."""

    conversion: Conversion
    reference: Reference
    count: int
    """Rows of each tensor; 0 for all."""
    requantizer: Requantizer
    rounded: bool
    """Whether the merge rounded to the base's type, as --merge-dtype base does."""
    by_importance: bool = False
    """Whether the files were quantized with an importance matrix."""
    kinds: dict[object, tuple[np.ndarray[Any, Any], ValueOrigin | None]] = field(
        default_factory=dict
    )
    """Rows and their origins, by the common properties of a group of slots."""

    def check(self, file: GGUFFile, *, report: Report = silent) -> Check:
        found = WeightFindings()
        infos = {info.name: info for info in file.tensors}
        found.problems += differing_layout(self.conversion.slots, infos)
        chosen = self.choose()
        for done, slot in enumerate(chosen):
            if slot.name in infos and infos[slot.name].shape == slot.shape:
                self.check_slot(slot, infos[slot.name], found)
            report(Progress("checking", done + 1, len(chosen), "tensors"))
        return conclude(found, loose=self.by_importance)

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

    def check_slot(self, slot: Slot, info: TensorInfo, found: WeightFindings) -> None:
        import numpy as np

        rows, origin = self.origin(slot)
        stored = read_rows(info, rows)
        expected, change, slack, parts = self.expect(slot, rows, origin)
        if origin is not None and self.judge(info, stored, expected, slack)[0] > 1:
            # slots of a group may differ after all: trace this one alone
            origin = trace(slot, rows, self.shape)
            expected, change, slack, parts = self.expect(slot, rows, origin)
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
            changed = Changed(stored, expected, change, parts)
            text = self.measure(slot, info, changed, found.strengths)
            if ratio <= 1 and text:
                found.weaker.append(text)

    def measure(self, slot: Slot, info: TensorInfo, rows: Changed, found: Strengths) -> str:
        """Add the share of the change in rows (n, columns); returns a sentence if it is wrong."""
        is_rounded = self.rounded and slot.type.name != "F32"
        rounded = slot.type if is_rounded else None
        sums, better, each = measure(rows, info.type, self.requantizer, rounded)
        found.together.join(sums)
        for folder, along in each.items():
            found.each.setdefault(folder, Along()).join(along)
        survives = sums.survives()
        if survives and is_low(survives):
            found.swallowed.append(Swallowed(slot.name, info.type.name, survives.value))
            for name, along in better.items():
                found.better.setdefault(name, Along()).join(along)
        times = sums.off(OFF_ALONE, loose=self.by_importance)
        return (
            "" if times is None else f"`{slot.name}` holds {times:.2f} times the adapter's change"
        )

    def judge(
        self,
        info: TensorInfo,
        stored: np.ndarray[Any, Any],
        expected: np.ndarray[Any, Any],
        slack: np.ndarray[Any, Any],
    ) -> tuple[float, str]:
        """The largest error relative to the allowed one, and a sentence about its place.

        stored, expected, slack: (n, columns).
        """
        import numpy as np

        if not np.isfinite(stored).all():
            return math.inf, what_is_no_number(stored, expected)
        if (near := likeness(stored, expected)) < least_likeness(info.type):
            return math.inf, f"is like another tensor (cosine {near:.2f})"
        allowed = allowed_error(
            expected, info.type, rounded=self.rounded, by_importance=self.by_importance
        )
        allowed = allowed + slack
        part = shares_of(np.abs(stored - expected), allowed, by_importance=self.by_importance)
        at = np.unravel_index(int(part.argmax()), part.shape)
        return float(part[at]), (
            f"is {stored[at]:.6g} where base and adapter give {expected[at]:.6g};"
            f" the type allows an error of {allowed[at]:.2g}"
        )

    def origin(self, slot: Slot) -> tuple[np.ndarray[Any, Any], ValueOrigin | None]:
        """Some of the slot's rows, (n,), and their origins."""
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
        self, slot: Slot, rows: np.ndarray[Any, Any], origin: ValueOrigin | None
    ) -> ExpectedRows:
        """The expected values of rows, the adapters' change, float32's slack, and each adapter's
        change.

        All are (n, columns); the change is None where the base has no such rows.
        """
        import numpy as np

        if origin is None:
            expected = compute(slot, rows, self.read_whole)
            return expected, None, np.abs(expected).max(axis=1, keepdims=True) * 2.0**-18, {}
        names = sources(slot)
        if origin.is_whole_row:
            return self.expect_rows(names[0], origin.row[:, 0])
        expected, slack = np.zeros(origin.row.shape), np.zeros(origin.row.shape)
        change: np.ndarray[Any, Any] | None = np.zeros(origin.row.shape)
        parts: dict[Path, np.ndarray[Any, Any]] = {}
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
            for folder, added in merged.parts:
                part = parts.setdefault(folder, np.zeros(origin.row.shape))
                part[here] += added[at] * origin.factor[here]
        factor = np.abs(origin.factor)
        if change is not None:
            change = change * origin.factor
        return expected * origin.factor + origin.offset, change, slack * factor, parts

    def expect_rows(self, name: str, numbers: np.ndarray[Any, Any]) -> ExpectedRows:
        """The result of `expect` for rows (n,) of a merged tensor without any step."""
        import numpy as np

        merged = self.reference.rows(name, numbers)
        change: np.ndarray[Any, Any] | None = None
        if merged.before is not None:
            change = merged.after - merged.before
        elif name not in self.reference.plan.changes:
            change = np.zeros_like(merged.after)
        parts: dict[Path, np.ndarray[Any, Any]] = {}
        for folder, added in merged.parts:
            parts[folder] = parts[folder] + added if folder in parts else added
        return merged.after, change, merged.slack, parts

    def read_whole(self, name: str) -> torch.Tensor:
        """A whole tensor of its shape (rows, columns), computed row by row."""
        import numpy as np
        import torch

        shape = self.shape(name)
        rows = np.arange(math.prod(shape[:-1]) if shape else 1)
        return torch.from_numpy(self.reference.rows(name, rows).after).reshape(shape)


def what_is_no_number(stored: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> str:
    """Describe rows (n, columns) with values that are not finite."""
    import numpy as np

    lost = ~np.isfinite(stored)
    largest = float(np.abs(expected[lost]).max())
    if HALF_ENDS < largest < math.inf:
        return (
            f"{NO_ROOM} {largest:.4g}, which base and adapter give: numbers with scales or"
            f" values in F16 ends at {HALF_ENDS:,} or some hundred times that"
        )
    return "holds values that are not finite"


def differing_layout(slots: tuple[Slot, ...], infos: dict[str, TensorInfo]) -> list[str]:
    """Tensors that only one side has, or that differ in shape."""
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
    """Rows (n,) of a tensor, dequantized by llama.cpp's Python to (n, columns) in float64."""
    import numpy as np

    columns = info.shape[-1] if info.shape else 1
    count = math.prod(info.shape[:-1]) if info.shape else 1
    data = np.memmap(
        info.path, np.uint8, "r", info.offset, shape=(count, info.type.row_nbytes(columns))
    )
    return dequantized(np.ascontiguousarray(data[rows]), info.type)


def conclude(found: WeightFindings, *, loose: bool = False) -> Check:
    """The result of the check. loose: the file was quantized with an importance matrix."""
    together = found.strengths.together
    problems = [*found.problems, *found.weaker]
    times = together.off(OFF_TOGETHER, loose=loose)
    if times is not None:
        problems.append(f"the merged tensors together hold {times:.2f} times the adapter's change")
    if not loose:
        problems += found.strengths.missing()
    detail = (
        f"{found.merged} merged and {found.others} other tensors, {found.values} values;"
        f" largest error {found.worst:.2f} of what its type allows"
    )
    numbers: dict[str, float] = {
        "merged": found.merged, "others": found.others, "values": found.values,
        "worst": found.worst,
    }  # fmt: skip
    survives, held = together.survives(), together.held.share()
    if survives and survives.error < BLIND:
        detail += f"; the adapter is there {survives.value:.3f} times (± {survives.error:.3f})"
        numbers |= {"strength": survives.value, "strength_error": survives.error}
    elif survives and held:
        detail += "; the adapter's change is there as this quantization rounds it"
    elif survives:
        detail += "; the adapter's change is too small to be measured at this quantization"
    swallowed = found.strengths.swallowed
    numbers |= {f"survives in {tensor.name}": tensor.share for tensor in swallowed}
    note = found.strengths.note() if not problems else ""
    hint = OTHER_BASE if found.problems else OTHER_ADAPTER
    if any(NO_ROOM in problem for problem in found.problems):
        hint = TOO_LARGE
    return Check("weights", tuple(problems), detail, (note,) if note else (), numbers, hint=hint)
