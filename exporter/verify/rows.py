"""Rows of the merged model, computed in float64 from the base's and the adapters' files.

It shares nothing with the merge that it checks: it reads single rows by itself, and adds a plain
LoRA, DoRA, an expert's slice or new values with numpy. Only steps that need PEFT's layers (other
tuners, rare variants of LoRA) come from the merge, in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.core.safetensors import StoredTensor
from exporter.inputs.adapter_kinds import PLAIN_INITS, VARIANTS, is_set
from exporter.inputs.gguf_tensors import Quantized
from exporter.inputs.lazy_tensor import Tensor, read_tensor
from exporter.merge.apply import MergedTensors
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

if TYPE_CHECKING:
    import numpy as np

    Rows = np.ndarray[Any, Any]

DIRECT = {"F32": "float32", "F16": "float16", "F64": "float64"}
EPSILON = 2.0**-24  # relative error of float32 arithmetic
PEFT_EPSILON = 2.0**-18  # of a longer computation in float32, relative to the row's largest value
MAGNITUDE = "lora_magnitude_vector"
OWN_VARIANTS = ("use_dora", "lora_bias")
"""Variants of LoRA that this module computes; a bias does not change the weight."""


@dataclass(frozen=True, slots=True)
class MergedRows:
    """Some rows of one tensor, (rows, columns) in float64."""

    after: Rows
    before: Rows | None
    """The base's rows; None if it lacks them, or nothing changes them."""
    slack: Rows
    """Largest deviation of a correct float32 merge from `after`."""
    parts: tuple[tuple[Path, Rows], ...] = ()
    """Each adapter's folder and its change, for several adapters."""


class Reference:
    """The model of a plan, computed row by row."""

    def __init__(self, plan: MergePlan) -> None:
        self.plan = plan
        self.exact = MergedTensors(replace(plan, dtype="float32"))
        self.last: tuple[str, Rows] = ("", None)  # type: ignore[assignment]

    def rows(self, name: str, numbers: Rows) -> MergedRows:
        """The merged rows. numbers: (n,), row numbers counted through all leading dimensions."""
        import numpy as np

        change = self.plan.changes.get(name)
        if change is None:
            values = stored_rows(self.plan.checkpoint.tensors[name], numbers)
            return MergedRows(values, None, np.zeros_like(values))
        before = base_rows(change, numbers)
        if any(needs_peft(step) for step in change.steps):
            merged = self.from_peft(name)[numbers]
            reach = np.abs(merged).max(axis=1, keepdims=True)
            return MergedRows(merged, before, np.broadcast_to(reach * PEFT_EPSILON, merged.shape))
        after: Rows | None = before
        slack = np.zeros(1)
        parts = []
        for step in change.steps:
            was = after
            after, added = apply_step(step, after, numbers)
            slack = slack + added
            folder = adapter_of(step) if len(self.plan.adapters) > 1 else None
            if folder and was is not None:
                parts.append((folder, after - was))
        assert after is not None, name
        return MergedRows(after, before, np.broadcast_to(slack, after.shape), tuple(parts))

    def from_peft(self, name: str) -> Rows:
        """A whole tensor (rows, columns) from PEFT's layers, cached until another is requested."""
        if self.last[0] != name:
            merged = self.exact.read(name).double().numpy()
            self.last = name, merged.reshape(-1, merged.shape[-1])
        return self.last[1]


def adapter_of(step: Step) -> Path | None:
    """The folder of the adapter that a sum comes from; None if the step does not show it."""
    match step:
        case LoraSum():
            return step.adapter.folder
        case PartSum():
            return step.parts[0][1].adapter.folder
        case ExpertSum():
            tensor = step.a
        case StackSum():
            tensor = step.parts[0].pair.a
        case _:
            return None
    return tensor.path.parent if isinstance(tensor, StoredTensor) else None


def needs_peft(step: Step) -> bool:
    """Whether a step needs PEFT's layers."""
    if isinstance(step, (Tuned, CombinedSum, Residual, AddRows)):
        return True
    if isinstance(step, PartSum):
        return any(needs_peft(part) for _, part in step.parts)
    if not isinstance(step, LoraSum):
        return False
    config = step.adapter.config
    others = [name for name in VARIANTS if name not in OWN_VARIANTS and is_set(config.get(name))]
    dora = is_set(config.get("use_dora")) and step.kind != "linear"
    return bool(others) or dora or config.get("init_lora_weights") not in PLAIN_INITS


def base_rows(change: Change, numbers: Rows) -> Rows | None:
    """The base's values of the rows, (n, columns), if it has all of them."""
    source = change.source
    if source is None or source.shape[1:] != change.shape[1:]:
        return None
    count = math.prod(source.shape[:-1])
    return stored_rows(source, numbers) if numbers.max(initial=0) < count else None


def apply_step(step: Step, weight: Rows | None, numbers: Rows) -> tuple[Rows, Rows]:
    """Apply one step to rows (n, columns): their new values, and the slack of float32."""
    import numpy as np

    none = np.zeros(1)
    if isinstance(step, Replace):
        return stored_rows(step.values, numbers), none
    assert weight is not None
    match step:
        case ReplaceRows():
            weight = weight.copy()
            places = {token: place for place, token in enumerate(step.rows)}
            for at, number in enumerate(numbers):
                if int(number) in places:
                    weight[at] = stored_rows(step.values, np.array([places[int(number)]]))[0]
            return weight, none
        case BiasSum():
            update = stored_rows(step.values, numbers) * step.scaling
            return weight + update, (np.abs(weight) + np.abs(update)) * 4 * EPSILON
        case ExpertSum():
            left, right = expert_halves(step, numbers, weight.shape[1])
            return add(weight, left, right, step.scaling)
        case _:
            return add_pairs(step, weight, numbers)


def add_pairs(step: Step, weight: Rows, numbers: Rows) -> tuple[Rows, Rows]:
    """Apply LoRAs of a whole weight, of parts of it, or of single experts to rows (n, columns)."""
    match step:
        case LoraSum():
            return add_lora(step, weight, numbers)
        case StackSum():
            return add_parts(step, weight, numbers)
        case PartSum():
            return add_to_rows(step, weight, numbers)
        case _:
            raise AssertionError(step)


def add_lora(step: LoraSum, weight: Rows, numbers: Rows) -> tuple[Rows, Rows]:
    """Apply a plain pair, or a linear layer's DoRA, to rows (n, columns)."""
    import numpy as np

    a, b = whole(step.pair.a), whole(step.pair.b)
    left, right = (b[numbers], a) if step.kind == "linear" else (a[:, numbers].T, b.T)
    summed, slack = add(weight, left, right, step.scaling * step.scale)
    if not is_set(step.adapter.config.get("use_dora")):
        return summed, slack
    found = next(values for role, values in step.pair.extras.items() if role.startswith(MAGNITUDE))
    magnitude = whole(found).reshape(-1)[numbers, None]
    length = np.linalg.norm(summed, axis=1, keepdims=True)
    return magnitude * summed / length, np.abs(magnitude / length) * (
        slack + np.abs(summed).max(axis=1, keepdims=True) * PEFT_EPSILON
    )


def add(weight: Rows, left: Rows, right: Rows, scaling: float) -> tuple[Rows, Rows]:
    """weight + scaling * left @ right, (n, columns), and the bound of such a sum in float32."""
    import numpy as np

    terms = np.abs(weight) + abs(scaling) * (np.abs(left) @ np.abs(right))
    return weight + scaling * (left @ right), terms * (left.shape[1] + 4) * EPSILON


def expert_halves(step: ExpertSum, numbers: Rows, columns: int) -> tuple[Rows, Rows]:
    """B (n, rank) and A (rank, columns) for an expert's rows, or for rows of a stack."""
    import numpy as np

    a, b = whole(step.a), whole(step.b)
    a = a.reshape(step.experts, -1, a.shape[1])  # (expert, rank, in)
    if step.expert_major:
        b = b.reshape(b.shape[0], step.experts, -1).transpose(1, 0, 2)  # (expert, out, rank)
    else:
        b = b.reshape(b.shape[0], -1, step.experts).transpose(2, 0, 1)
    height = a.shape[2] if step.transposed else b.shape[1]
    experts = numbers // height if step.expert is None else np.full_like(numbers, step.expert)
    within = numbers % height if step.expert is None else numbers + step.first_row
    # block by block: an expert's rows meet only its matrices
    rank = a.shape[1]
    used = np.unique(experts)
    left = np.zeros((len(numbers), rank * len(used)))
    right = np.zeros((rank * len(used), columns))
    for place, expert in enumerate(used):
        halves = (a[expert].T, b[expert].T) if step.transposed else (b[expert], a[expert])
        mine, block = experts == expert, slice(place * rank, (place + 1) * rank)
        left[mine, block] = halves[0][within[mine]]
        right[block] = halves[1]
    return left, right


def add_parts(step: StackSum, weight: Rows, numbers: Rows) -> tuple[Rows, Rows]:
    """Apply pairs of single experts to rows (n, columns) of their stack."""
    import numpy as np

    slack = np.zeros_like(weight)
    height = step.height
    for part in step.parts:
        a, b = whole(part.pair.a), whole(part.pair.b)  # (rank, n_in), (n_out, rank)
        within = numbers - part.expert * height
        here = (within >= 0) & (within < height)
        columns = slice(None)
        if step.transposed:  # the stack's rows are the pair's columns
            left, right = a.T, b.T
            columns = part.rows
        else:
            left, right = b, a
            within, between = np.divmod(within - part.first_row, part.stride)
            here &= (within >= 0) & (within < len(b)) & (between == 0)
        if here.any():
            at = np.ix_(here, np.arange(weight.shape[1])[columns])
            summed, more = add(weight[at], left[within[here]], right, part.scaling)
            weight = weight.copy()
            weight[at] = summed
            slack[at] += more
    return weight, slack


def add_to_rows(step: PartSum, weight: Rows, numbers: Rows) -> tuple[Rows, Rows]:
    """Apply LoRAs of parts of a tensor to rows (n, columns) of it."""
    import numpy as np

    weight, slack = weight.copy(), np.zeros_like(weight)
    for first, part in step.parts:
        within = numbers - first
        here = (within >= 0) & (within < part.pair.b.shape[0])
        if here.any():
            weight[here], slack[here] = add_lora(part, weight[here], within[here])
    return weight, slack


def whole(tensor: Tensor) -> Rows:
    """A small tensor in float64, of its shape (rows, columns)."""
    values: Rows = read_tensor(tensor).double().numpy()
    return values


def stored_rows(tensor: Tensor, numbers: Rows) -> Rows:
    """Rows (n, columns) of a stored tensor in float64; of plain floats only these are read."""
    import numpy as np

    columns = tensor.shape[-1] if tensor.shape else 1
    if isinstance(tensor, Quantized):
        return tensor.rows(numbers).reshape(-1, columns).astype(np.float64)
    plain = tensor.dtype == "BF16" or tensor.dtype in DIRECT
    if not plain or not isinstance(tensor, StoredTensor):
        values: Rows = read_tensor(tensor).double().numpy().reshape(-1, columns)
        return values[numbers]
    dtype = DIRECT.get(tensor.dtype, "uint16")
    count = math.prod(tensor.shape[:-1]) if tensor.shape else 1
    stored = np.memmap(
        tensor.path, dtype=dtype, mode="r", offset=tensor.offset, shape=(count, columns)
    )
    taken = np.asarray(stored[numbers])
    if tensor.dtype == "BF16":  # the upper half of a float32
        taken = (taken.astype(np.uint32) << 16).view(np.float32)
    return taken.astype(np.float64)
