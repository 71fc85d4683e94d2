"""Applies a merge plan: reads and changes the checkpoint's tensors, one at a time.

In float32 a plain LoRA is the exact sum; in the base's type it is rounded as PEFT's linear layer
rounds it. For anything beyond a sum, PEFT's layers compute the merge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from exporter.core.buffer_pool import Pool
from exporter.core.errors import AdapterError, CheckpointError
from exporter.core.safetensors import StoredTensor
from exporter.inputs.lazy_tensor import converted, read_tensor, torch_dtype
from exporter.merge.operations import (
    AddRows,
    BiasSum,
    CombinedSum,
    ExpertSum,
    LoraSum,
    MergePlan,
    PartSum,
    Replace,
    ReplaceRows,
    Residual,
    StackSum,
    Step,
    Tuned,
)
from exporter.merge.peft_layers import (
    Tuner,
    combine_with_peft,
    merge_with_peft,
    residual_with_peft,
)
from exporter.merge.row_blocks import PlainSum, RowBlock, held_blocks, stored_blocks
from exporter.merge.tied_embeddings import find_embeddings

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from exporter.inputs.lazy_tensor import Tensor

ROUNDING = 1e-6  # relative to a tensor's largest value


class MergedTensors:
    """The result's tensors by the checkpoint's names; `read` computes a tensor on each call."""

    def __init__(self, plan: MergePlan) -> None:
        self.plan = plan
        self.pool = Pool()
        self.tuners: dict[Path, Tuner] = {}
        self.by_row: dict[tuple[object, ...], bool] = {}  # by a pair's kind and shapes
        self.pair: tuple[ExpertSum, torch.Tensor, torch.Tensor] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.plan.names

    def stored_dtype(self, name: str) -> torch.dtype:
        """The tensor's type in the checkpoint; for a new one, the type of the base's matrices."""
        return torch_dtype(self.stored_type(name))

    def stored_type(self, name: str) -> str:
        """The type of `stored_dtype`, in safetensors' spelling."""
        if name in self.plan.checkpoint.tensors:
            return self.plan.checkpoint.tensors[name].dtype
        return (self.plan.changes[name].source or self.neighbour()).dtype

    def neighbour(self) -> Tensor:
        """A matrix of the checkpoint, whose type a new tensor takes."""
        tensors = self.plan.checkpoint.tensors.values()
        return next((t for t in tensors if len(t.shape) > 1), next(iter(tensors)))

    def dtype(self, name: str) -> torch.dtype:
        """The type that `read` returns: the stored one, or float32 for an exact merge."""
        import torch

        exact = name in self.plan.changes and self.plan.dtype == "float32"
        return torch.float32 if exact else self.stored_dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self.plan.changes:
            return self.plan.changes[name].shape
        return self.plan.checkpoint.tensors[name].shape

    def read(self, name: str) -> torch.Tensor:
        """One tensor of shape `shape(name)`, with all its planned steps applied.

        Raises CheckpointError or AdapterError for NaN or infinite values.
        """
        change = self.plan.changes.get(name)
        if change is None:
            weight = read_tensor(self.plan.checkpoint.tensors[name], self.pool)
            refuse_non_finite(name, weight, merged=False)
            return weight
        merged = self.merge(name)
        if not is_finite(merged):
            if change.source is not None:
                refuse_non_finite(name, read_tensor(change.source), merged=False)
            refuse_non_finite(name, merged, merged=True)
        return merged

    def row_blocks(self, name: str) -> Iterator[RowBlock]:
        """A tensor's rows in blocks, which are computed when they are used.

        A tensor whose merge is more than the sum of plain LoRAs is computed whole at once. Blocks
        and this function raise the errors of `read`.
        """
        stored, steps = self.origin(name)
        if isinstance(stored, StoredTensor) and self.is_in_blocks(name):
            sums = [PlainSum.of(step) for step in steps if isinstance(step, LoraSum)]
            yield from stored_blocks(stored, partial(self.read_rows, name, sums))
        else:
            yield from held_blocks(self.read(name))

    def origin(self, name: str) -> tuple[Tensor, Sequence[Step]]:
        """The tensor with the values before all sums, and the steps that change them."""
        change = self.plan.changes.get(name)
        if change is None:
            return self.plan.checkpoint.tensors[name], ()
        first = change.steps[0] if change.steps else None
        if isinstance(first, Replace):
            return first.values, change.steps[1:]
        assert change.source is not None, name
        return change.source, change.steps

    def is_in_blocks(self, name: str) -> bool:
        """Whether a tensor is read and merged in blocks of rows."""
        stored, steps = self.origin(name)
        return isinstance(stored, StoredTensor) and all(map(self.is_by_row, steps))

    def is_by_row(self, step: Step) -> bool:
        """Whether a step changes blocks of rows as it changes the whole tensor, bit by bit."""
        if not isinstance(step, LoraSum) or not self.is_plain_sum(step):
            return False
        key = (step.kind, step.pair.a.shape, step.pair.b.shape)
        if key not in self.by_row:
            self.by_row[key] = PlainSum.of(step).is_same_by_rows()
        return self.by_row[key]

    def is_plain_sum(self, step: LoraSum) -> bool:
        """Whether a step adds a product, as it is or as PEFT's linear layer rounds it."""
        return step.adapter.is_plain and (step.kind == "linear" or self.plan.dtype == "float32")

    def read_rows(
        self, name: str, sums: Sequence[PlainSum], part: StoredTensor, first: int
    ) -> torch.Tensor:
        """Some rows of a tensor, (n, columns). part: their place; first: the first one's number.

        Raises the errors of `read`.
        """
        rows = converted(read_tensor(part, self.pool), self.dtype(name), self.pool)
        for one in sums:
            self.add_sum(one, rows, first)
        if not is_finite(rows):
            self.read(name)  # raises, with the count of the whole tensor
        return rows

    def add_sum(self, one: PlainSum, rows: torch.Tensor, first: int = 0) -> None:
        """Add a plain pair to rows (n, columns), from number `first` on, in the merge's type."""
        import torch

        if rows.dtype == torch.float32 and self.plan.dtype == "float32":
            one.add(rows, first)
        else:
            one.add_rounded(rows, self.pool, first)

    def has_base(self, name: str) -> bool:
        """Whether an adapter changes a tensor that the base has in the same shape."""
        change = self.plan.changes.get(name)
        source = change.source if change else None
        return source is not None and change is not None and source.shape == change.shape

    def read_base(self, name: str) -> torch.Tensor:
        """The base's tensor in place of the merged one, in the same shape and type."""
        source = self.plan.changes[name].source
        assert source is not None, name
        return converted(read_tensor(source, self.pool), self.dtype(name), self.pool)

    def changes_something(self, name: str) -> bool:
        """Whether a tensor differs from the base's by more than float32's rounding.

        A tied head is compared with the new embedding: a result without a head uses that one.
        """
        import torch

        change, embeddings = self.plan.changes[name], find_embeddings(self.plan.checkpoint)
        if change.source is None or change.shape != change.source.shape:
            return True
        is_head = embeddings.tied and name == embeddings.head
        base = self.read(embeddings.embedding) if is_head else read_tensor(change.source)
        before = base.float()
        after = self.read(name).float()
        reach = float(before.abs().max()) if before.numel() else 0.0
        return before.shape != after.shape or not torch.allclose(
            after, before, rtol=0, atol=reach * ROUNDING
        )

    def merge(self, name: str) -> torch.Tensor:
        """Apply the steps in order to the tensor's values, in the type of the merge."""
        import torch

        source, steps = self.origin(name)
        weight = converted(read_tensor(source, self.pool), self.dtype(name), self.pool)
        with torch.no_grad():
            for step in steps:
                weight = self.apply_step(step, weight)
        return weight

    def apply_step(self, step: Step, weight: torch.Tensor) -> torch.Tensor:
        """Apply one step to `weight`, which may be changed in place."""
        match step:
            case LoraSum():
                return self.add_lora(step, weight)
            case ExpertSum():
                add_experts(step, weight, *self.stacked_pair(step))
            case StackSum():
                add_parts(step, weight)
            case PartSum():
                for first, part in step.parts:
                    rows = weight[first : first + part.pair.b.shape[0]]
                    rows[:] = self.add_lora(part, rows.clone())
            case CombinedSum():
                return combine_with_peft(step, weight)
            case Residual():
                return residual_with_peft(step.of, weight)
            case Tuned():
                return self.tune(step, weight)
            case _:
                return with_values(step, weight)
        return weight

    def stacked_pair(self, step: ExpertSum) -> tuple[torch.Tensor, torch.Tensor]:
        """The pair that all experts of a layer share, cached until another one is requested."""
        if self.pair is None or self.pair[0].a != step.a:
            self.pair = None
            self.pair = (step, *split_experts(step))
        return self.pair[1:]

    def add_lora(self, step: LoraSum, weight: torch.Tensor) -> torch.Tensor:
        is_exact = self.plan.dtype == "float32"
        if not self.is_plain_sum(step) or not (is_exact or self.is_by_row(step)):
            return merge_with_peft(step, weight)
        self.add_sum(PlainSum.of(step), weight)
        return weight

    def tune(self, step: Tuned, values: torch.Tensor) -> torch.Tensor:
        """A module's weight or bias from its tuner's layer, which needs both."""
        tuner = self.tuner(step)
        if step.changes_bias:
            weight = read_tensor(step.weight).to(values.dtype)
            return tuner.merge(step.module, weight, values)[1]  # type: ignore[return-value]
        bias = read_tensor(step.bias).to(values.dtype) if step.bias else None
        return tuner.merge(step.module, values, bias)[0]

    def tuner(self, step: Tuned) -> Tuner:
        """The adapter's tuner over its modules, built on first use."""
        import torch

        folder = step.adapter.folder
        if folder not in self.tuners:
            steps = {
                other.module: other
                for change in self.plan.changes.values()
                for other in change.steps
                if isinstance(other, Tuned) and other.adapter.folder == folder
            }
            dtype = torch.float32 if self.plan.dtype == "float32" else None
            self.tuners[folder] = Tuner(step.adapter, steps, self.plan.checkpoint, dtype=dtype)
        return self.tuners[folder]


def split_experts(step: ExpertSum) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a stacked pair by expert: A as (experts, rank, in), B as (experts, out, rank)."""
    a = read_tensor(step.a).float().reshape(step.experts, -1, step.a.shape[1])
    b = read_tensor(step.b).float()
    if step.expert_major:
        return a, b.reshape(b.shape[0], step.experts, -1).permute(1, 0, 2).contiguous()
    return a, b.reshape(b.shape[0], -1, step.experts).permute(2, 0, 1).contiguous()


def add_experts(step: ExpertSum, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add a stacked pair's update in place, to one expert's rows or to the whole stack.

    weight: (n_out, n_in) or (experts, n_out, n_in), transposed if the step says so; a: (experts,
    rank, n_in), b: (experts, n_out, rank).
    """
    numbers = range(step.experts) if step.expert is None else [step.expert]
    for expert in numbers:
        target = weight if step.expert is not None else weight[expert]
        rows = slice(step.first_row, step.first_row + target.shape[0])
        left, right = (a[expert].T, b[expert].T) if step.transposed else (b[expert], a[expert])
        update = (left[rows] @ right) * step.scaling
        target += update.to(target.dtype)


def add_parts(step: StackSum, stack: torch.Tensor) -> None:
    """Add each expert's pairs to its slice of the stack, in place.

    stack: (experts, n_out, n_in), or (experts, n_in, n_out) if the step says transposed.
    """
    for part in step.parts:
        a, b = (read_tensor(half).float() for half in (part.pair.a, part.pair.b))
        weight = stack[part.expert].T if step.transposed else stack[part.expert]
        update = (b @ a) * part.scaling  # (n_out of the part, n_in)
        weight[part.rows] += update.to(stack.dtype)


def with_values(
    step: BiasSum | Replace | ReplaceRows | AddRows, weight: torch.Tensor
) -> torch.Tensor:
    """Apply a step that needs no matrix product. weight: (rows, columns) or (rows,), changed in
    place.
    """
    match step:
        case BiasSum():
            weight += read_tensor(step.values).float() * step.scaling
        case ReplaceRows():
            weight[list(step.rows)] = read_tensor(step.values).to(weight.dtype)
        case AddRows():
            return with_rows(weight, step.rows)
        case Replace():
            return read_tensor(step.values).to(weight.dtype)
    return weight


def with_rows(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """Append rows of the mean to an embedding (n, width) up to (rows, width)."""
    import torch

    mean = weight.float().mean(dim=0, keepdim=True).to(weight.dtype)  # (1, width)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values (…) are finite.

    The smallest and the largest value show it: a NaN makes both NaN. In bf16 they take 1/30 of the
    time of a sum.
    """
    import torch

    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize == 1 or not tensor.numel():
        return True
    return all(math.isfinite(bound.item()) for bound in torch.aminmax(tensor))


def refuse_non_finite(name: str, tensor: torch.Tensor, *, merged: bool) -> None:
    """Raise AdapterError (merged) or CheckpointError (base) for NaN or infinite values (…)."""
    import torch

    if is_finite(tensor):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    if merged:
        raise AdapterError(
            f"merging makes {bad} of {tensor.numel()} values of `{name}` NaN or infinite",
            hint="the training diverged: use an earlier checkpoint of the adapter",
        )
    raise CheckpointError(
        f"{bad} of {tensor.numel()} values of `{name}` in the base are NaN or infinite",
        hint="download or copy the base again",
    )
