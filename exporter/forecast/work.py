"""The work of an export, as far as its time and memory depend on it. Reads no weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.convert.gguf_layout import Slot
from exporter.convert.lazy_graph import before_casts, leaf_name, sources, split_stack
from exporter.core.safetensors import StoredTensor
from exporter.formats.gguf_file import GGUFPlan, Group
from exporter.inputs.lazy_tensor import Tensor
from exporter.merge.apply import MergedTensors
from exporter.merge.operations import (
    Change,
    CombinedSum,
    ExpertSum,
    LoraSum,
    MergeDtype,
    MergePlan,
    PartSum,
    Residual,
    StackSum,
    Step,
    Tuned,
)

MEASURABLE = ("BF16", "F16", "F32", "F64")
"""Types of which made-up values are timed; others count as the first."""


@dataclass(frozen=True, slots=True)
class Target:
    """The type of some values in one file."""

    type: str
    round_to: str = ""
    """The 16-bit type that it is rounded to before; empty for none."""
    weighted: bool = False
    """Whether an importance matrix covers it."""


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of work, whose time is proportional to the number of values."""

    stored: str
    """The type in the checkpoint, as safetensors spells it."""
    rank: int
    """Of the LoRA that changes the values; 0 for none."""
    dtype: MergeDtype
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Values that are in memory at once: a tensor, or an expert of a stacked one."""

    values: int
    stored_nbytes: int
    exact: bool
    """Whether they are merged in float32."""
    by_peft: bool
    """Whether PEFT's layers merge them."""
    rearranged: bool
    """Whether the converter changes more than their type, which takes a copy."""
    whole: bool
    """Whether all of them are in memory; else blocks of rows are."""


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one export."""

    values: Counter[Task]
    parts: tuple[Part, ...]
    """In the order of writing."""
    read_nbytes: int
    written_nbytes: int
    paths: tuple[Path, ...]
    """The files that the values are read from."""
    is_measurable: bool
    """False if a base is dequantized or a tuner's layers are built, which no rate covers."""


def work_of(groups: Sequence[Group], merge: MergePlan) -> Work:
    """The work of a plan's files."""
    values: Counter[Task] = Counter()
    parts: list[Part] = []
    merged = MergedTensors(merge)
    for group in groups:
        for slot in group.slots:
            names = sources(slot.values)
            values[task_of(slot, names, group.plans, merge)] += math.prod(slot.shape)
            parts += parts_of(slot, merged)
    tensors = list(merge.checkpoint.tensors.values())
    stored = [tensor for tensor in tensors if isinstance(tensor, StoredTensor)]
    steps = [step for change in merge.changes.values() for step in change.steps]
    return Work(
        values,
        tuple(parts),
        sum(tensor.nbytes for tensor in tensors),
        sum(plan.layout.size for group in groups for plan in group.plans),
        tuple(dict.fromkeys(tensor.path for tensor in stored)),
        len(stored) == len(tensors) and not any(map(needs_layers, steps)),
    )


def task_of(slot: Slot, names: Sequence[str], plans: Sequence[GGUFPlan], merge: MergePlan) -> Task:
    """The kind of work that a slot's values are, in all files that have them."""
    tensor = source_of(names[0], merge) if names else None
    changes = (merge.changes[name] for name in names if name in merge.changes)
    rank = max((rank_of(step) for change in changes for step in change.steps), default=0)
    targets = tuple(
        Target(
            plan.types[slot.name].name,
            plan.round_to[slot.name].name if slot.name in plan.round_to else "",
            slot.name in plan.importance,
        )
        for plan in plans
        if slot.name in plan.types
    )
    stored = tensor.dtype if tensor and tensor.dtype in MEASURABLE else "BF16"
    return Task(stored, rank, merge.dtype if rank else "float32", targets)


def parts_of(slot: Slot, merged: MergedTensors) -> Iterator[Part]:
    """The parts of a slot, which are in memory one after the other."""
    merge = merged.plan
    for part in split_stack(slot.values):
        plain = leaf_name(before_casts(part))
        for name in sources(part):
            tensor, change = source_of(name, merge), merge.changes.get(name)
            if tensor is None:
                continue
            yield Part(
                math.prod(change.shape if change else tensor.shape),
                tensor.nbytes,
                change is not None and merge.dtype == "float32",
                change is not None and is_by_peft(change, merged),
                plain is None,
                plain is None or not merged.is_in_blocks(name),
            )


def source_of(name: str, merge: MergePlan) -> Tensor | None:
    """The base's tensor (…) of a name; None for one that only an adapter has."""
    found = merge.checkpoint.tensors.get(name)
    return found or (merge.changes[name].source if name in merge.changes else None)


def rank_of(step: Step) -> int:
    """The rank of the product that a step adds; 0 without one."""
    ranks: list[int] = []
    match step:
        case LoraSum():
            ranks = [step.pair.rank]
        case PartSum():
            ranks = [part.pair.rank for _, part in step.parts]
        case StackSum():
            ranks = [part.pair.rank for part in step.parts]
        case ExpertSum():
            ranks = [step.a.shape[0] // step.experts]
        case CombinedSum():
            ranks = [sum(part.pair.rank for part in step.sums)]
        case Residual():
            ranks = [step.of.pair.rank]
        case _:
            pass
    return max(ranks, default=0)


def needs_layers(step: Step) -> bool:
    """Whether a step is more than adding the product of two matrices."""
    match step:
        case LoraSum():
            return not step.adapter.is_plain
        case PartSum():
            return not all(part.adapter.is_plain for _, part in step.parts)
        case _:
            return isinstance(step, CombinedSum | Residual | Tuned)


def is_by_peft(change: Change, merged: MergedTensors) -> bool:
    products = (LoraSum, PartSum)
    rounded = [
        step
        for step in change.steps
        if merged.plan.dtype == "base" and isinstance(step, products) and not merged.is_by_row(step)
    ]
    return bool(rounded) or any(map(needs_layers, change.steps))
