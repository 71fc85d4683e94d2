"""Applies a merge plan: reads and changes the checkpoint's tensors, one at a time.

In float32 a plain LoRA is the exact sum. In the base's type, and for anything beyond a sum, PEFT's
layers compute the merge, so that the rounding equals PEFT's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from exporter.core.buffer_pool import Pool
from exporter.core.errors import AdapterError, CheckpointError
from exporter.core.safetensors import StoredTensor
from exporter.inputs.lazy_tensor import converted, read_tensor, torch_dtype
from exporter.merge.operations import (
    AddRows,
    BiasSum,
    Change,
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
    merge_as_peft,
    merge_with_peft,
    residual_with_peft,
)
from exporter.merge.tied_embeddings import find_embeddings

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from exporter.inputs.lazy_tensor import Tensor

BLOCK_NBYTES = 64 << 20  # bytes of a block of rows
ROUNDING = 1e-6  # relative to a tensor's largest value


class MergedTensors:
    """The result's tensors by the checkpoint's names; `read` computes a tensor on each call."""

    def __init__(self, plan: MergePlan) -> None:
        self.plan = plan
        self.pool = Pool()
        self.tuners: dict[Path, Tuner] = {}
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
        merged = self.merge(name, change)
        if not is_finite(merged):
            if change.source is not None:
                refuse_non_finite(name, read_tensor(change.source), merged=False)
            refuse_non_finite(name, merged, merged=True)
        return merged

    def row_blocks(self, name: str) -> Iterator[torch.Tensor]:
        """A tensor (rows, …), in blocks of rows if it is large and no adapter changes it.

        Raises the errors of `read`.
        """
        stored = self.plan.checkpoint.tensors.get(name)
        is_plain = isinstance(stored, StoredTensor) and name not in self.plan.changes
        if not is_plain or stored is None or stored.nbytes <= BLOCK_NBYTES:
            yield self.read(name)
            return
        assert isinstance(stored, StoredTensor)
        n_rows = stored.shape[0]
        row_nbytes = stored.nbytes // n_rows
        step = max(1, BLOCK_NBYTES // row_nbytes)
        for start in range(0, n_rows, step):
            shape = (min(step, n_rows - start), *stored.shape[1:])
            offset = stored.offset + start * row_nbytes
            block = read_tensor(replace(stored, shape=shape, offset=offset), self.pool)
            if not is_finite(block):
                self.read(name)  # raises, with the count of the whole tensor
            yield block

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

    def merge(self, name: str, change: Change) -> torch.Tensor:
        """Apply the steps in order to the tensor's values, in the type of the merge."""
        import torch

        first = change.steps[0] if change.steps else None
        source = first.values if isinstance(first, Replace) else change.source
        assert source is not None, name
        weight = converted(read_tensor(source, self.pool), self.dtype(name), self.pool)
        with torch.no_grad():
            for step in change.steps[1:] if isinstance(first, Replace) else change.steps:
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
        import torch

        if not step.adapter.is_plain:
            return merge_with_peft(step, weight)
        a, b = (read_tensor(half).float() for half in (step.pair.a, step.pair.b))
        if weight.dtype == torch.float32 and self.plan.dtype == "float32":
            # all of a plain LoRA, without a temporary of the weight's size
            halves = (b, a) if step.kind == "linear" else (a.T, b.T)
            return weight.addmm_(*halves, alpha=step.scaling * step.scale)
        if step.kind == "linear":
            return merge_as_peft(weight, a, b, scaling=step.scaling * step.scale)
        return merge_with_peft(step, weight)

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
    return all(bool(torch.isfinite(bound)) for bound in torch.aminmax(tensor))


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
