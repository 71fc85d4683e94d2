"""Plans adapters of experts, stacked or separate, on a checkpoint with either layout.

transformers 5 holds the experts of a layer as one parameter of three dimensions, and PEFT trains
one pair of matrices for all of them; most checkpoints have a weight per expert. Each expert's rows
are then cut out of the pair, and the stack is never built. Other trainers have a linear layer per
expert where the checkpoint has a stack.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from exporter.core.errors import AdapterError
from exporter.core.safetensors import StoredTensor
from exporter.inputs.adapter_spec import AdapterSpec, LoraPair, scaling_of
from exporter.inputs.lazy_tensor import Tensor, nbytes_of, read_tensor
from exporter.inputs.module_names import Names
from exporter.merge.operations import ExpertPart, ExpertSum, StackSum, WeightedAdapter

if TYPE_CHECKING:
    import torch

# in the order of declaration, in which PEFT nests its wrappers
PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")
STACK = 3  # dimensions
# a single expert's module: experts.3.gate_proj, or experts.gate_up_projs.3
OF_ONE = re.compile(
    r"(?P<experts>.+\.experts)\.((?P<number>\d+)\.(?P<part>\w+)|(?P<stack>\w+)s\.(?P<place>\d+))"
)
# models with stacks of (experts, in, out) instead of (experts, out, in)
INPUT_FIRST = ("gpt_oss", "aria", "openai_privacy_filter")
# models whose stacks hold a row of gate, then one of up, and so on
IN_TURNS = ("gpt_oss",)
FIRST_RIGHT_PEFT = (0, 19)


def plan_experts(
    adapter: AdapterSpec, pair: LoraPair, names: Names, *, scale: float
) -> dict[str, ExpertSum] | str:
    """The step of each weight that a stacked pair changes, by its name in the checkpoint.

    Empty if the module has no experts; a sentence if the shapes do not fit.
    """
    parameter = parameter_of(adapter, pair, names)
    if parameter is None:
        return {}
    if whole := names.parameter(f"{pair.module}.{parameter}"):
        return plan_whole(adapter, pair, whole, names, parameter=parameter, scale=scale)
    tensors = names.checkpoint.tensors
    stacked = names.stacked(pair.module, parameter)
    if not stacked:
        return {}
    rows, n_in = sum(tensors[name].shape[0] for name in stacked[0]), tensors[stacked[0][0]].shape[1]
    shape = (len(stacked), rows, n_in)
    step = fit(adapter, pair, shape, names, parameter=parameter, scale=scale)
    if isinstance(step, str):
        return step
    found = {}
    for index, parts in enumerate(stacked):
        first = 0
        for name in parts:
            found[name] = replace(step, expert=index, first_row=first)
            first += tensors[name].shape[0]
    return found


def plan_whole(
    adapter: AdapterSpec, pair: LoraPair, name: str, names: Names, *, parameter: str, scale: float
) -> dict[str, ExpertSum] | str:
    """The steps for a parameter that is one tensor in the checkpoint: a stack, or a matrix.

    name: the tensor's name in the checkpoint, which may differ from the parameter's.
    """
    shape = names.checkpoint.tensors[name].shape
    if len(shape) == STACK - 1:
        if shape != (pair.b.shape[0], pair.a.shape[1]):
            return unlike(pair, parameter, shape)
        return {name: plan_single(adapter, pair, parameter=parameter, scale=scale)}
    if len(shape) != STACK:
        return {}
    step = fit(adapter, pair, shape, names, parameter=parameter, scale=scale)
    return step if isinstance(step, str) else {name: step}


def plan_single(
    adapter: AdapterSpec, pair: LoraPair, *, parameter: str = "weight", scale: float
) -> ExpertSum:
    """A matrix that was targeted as a parameter, such as a router's weight: a stack of one."""
    scaling = scaling_of(adapter, replace(pair, module=f"{pair.module}.{parameter}"))
    return ExpertSum(pair.a, pair.b, 1, 0, 0, scaling.value * scale, False, False)


def parameter_of(adapter: AdapterSpec, pair: LoraPair, names: Names) -> str | None:
    """The parameter of the module that a pair belongs to, by the depth of PEFT's wrapper."""
    targets = adapter.config.get("target_parameters")
    if not isinstance(targets, list):
        return None
    leaves = {str(target).rpartition(".")[2] for target in targets}
    known = PARAMETERS if leaves <= set(PARAMETERS) else names.parameters_of(pair.module)
    if not known and len(leaves) == 1:  # a model unknown to transformers
        known = tuple(leaves)
    mine = [name for name in known if is_targeted(adapter, f"{pair.module}.{name}")]
    return mine[-1 - pair.nested] if pair.nested < len(mine) else None


def is_targeted(adapter: AdapterSpec, parameter: str) -> bool:
    """Whether the adapter's config targets this parameter itself and not a module."""
    targets = adapter.config.get("target_parameters")
    return isinstance(targets, list) and any(
        f".{parameter}".endswith(f".{target}") for target in targets
    )


def fit(
    adapter: AdapterSpec,
    pair: LoraPair,
    shape: tuple[int, ...],
    names: Names,
    *,
    parameter: str,
    scale: float,
) -> ExpertSum | str:
    """The step for all experts of a stack of `shape`, or the reason why the pair does not fit."""
    experts, first, last = shape
    n_out, n_in = pair.b.shape[0], pair.a.shape[1]
    straight, turned = (n_out, n_in) == (first, last), (n_in, n_out) == (first, last)
    if pair.rank % experts or not (straight or turned):
        return unlike(pair, parameter, shape)
    if straight and turned:
        turned = stores_inputs_first(adapter, names)
    scaling = scaling_of(
        adapter, replace(pair, module=f"{pair.module}.{parameter}"), experts=experts
    )
    return ExpertSum(
        pair.a, pair.b, experts, None, 0, scaling.value * scale, turned, expert_major(adapter)
    )


def unlike(pair: LoraPair, parameter: str, shape: tuple[int, ...]) -> str:
    """The message for a pair that does not fit a parameter of `shape`."""
    return (
        f"`{pair.module}.{parameter}` is {list(shape)} in the base, and the adapter's"
        f" matrices are {list(pair.a.shape)} and {list(pair.b.shape)}"
    )


def stores_inputs_first(adapter: AdapterSpec, names: Names) -> bool:
    """Whether square experts are stored (in, out): decided by the model and PEFT's version.

    Raises AdapterError if the adapter records no version.
    """
    if names.checkpoint.config.get("model_type") in INPUT_FIRST:
        return True
    version = str(adapter.config.get("peft_version") or "")
    numbers = [int(part) for part in version.split(".")[:2] if part.isdecimal()]
    if len(numbers) != len(FIRST_RIGHT_PEFT):
        raise AdapterError(
            f"`{adapter.folder}` adapts square experts and does not say by which version of PEFT"
            " it was trained, which decides its layout",
            hint='write "peft_version": "0.19.0" (or the right one) into its adapter_config.json',
        )
    return tuple(numbers) < FIRST_RIGHT_PEFT


def expert_major(adapter: AdapterSpec) -> bool:
    """Whether the adapter's config says that its B is ordered by expert first."""
    return str(adapter.config.get("lora_B_layout") or "").replace("-", "_") == "expert_major"


def add_pair_of_one(
    weighted: WeightedAdapter, pair: LoraPair, names: Names
) -> tuple[str, StackSum] | str | None:
    """The stack and step for a pair of one expert, where the checkpoint has a stack.

    None if the module belongs to no expert; a sentence if the pair does not fit.
    """
    found = OF_ONE.fullmatch(pair.module)
    if found is None or not weighted.adapter.is_plain:
        return None
    expert = int(found["number"] or found["place"])
    place = stack_of(found["experts"], found["part"] or found["stack"], names)
    if place is None:
        return None
    name, position, count = place
    shape = names.checkpoint.tensors[name].shape
    n_out, n_in = pair.b.shape[0], pair.a.shape[1]
    straight, turned = (n_out * count, n_in) == shape[1:], (n_in, n_out * count) == shape[1:]
    if len(shape) != STACK or expert >= shape[0] or not (straight or turned):
        return (
            f"`{pair.module}` is expert {expert} of `{name}`, which is {list(shape)} in the base,"
            f" and ({n_out}, {n_in}) in the adapter"
        )
    if straight and turned:
        turned = names.checkpoint.config.get("model_type") in INPUT_FIRST
    scaling = scaling_of(weighted.adapter, pair).value * weighted.scale
    in_turns = names.checkpoint.config.get("model_type") in IN_TURNS
    first, stride = (position, count) if in_turns else (position * n_out, 1)
    part_of_one = ExpertPart(pair, expert, first, scaling, stride)
    return name, StackSum((part_of_one,), shape[1], turned)


def stack_of(experts: str, part: str, names: Names) -> tuple[str, int, int] | None:
    """The checkpoint's stack that holds a part of each expert, the part's position and their
    number.
    """
    for parameter in dict.fromkeys((part, *PARAMETERS)):
        parts = (parameter,) if parameter == part else names.parts_of(parameter)
        stack = names.parameter(f"{experts}.{parameter}") if part in parts else None
        if stack:
            return stack, parts.index(part), len(parts)
    return None


def stack_parts(stored: str, values: Tensor, names: Names) -> dict[str, Tensor]:
    """Split a whole stack of new values into the checkpoint's tensors, expert by expert.

    stored: a name such as model.layers.0.mlp.experts.down_proj; values: (experts, n_out, n_in).
    Empty if the checkpoint has no such experts, or other shapes.
    """
    module, _, parameter = stored.rpartition(".")
    stacked = names.stacked(module, parameter) if len(values.shape) == STACK else ()
    if len(stacked) != values.shape[0]:
        return {}
    tensors, found = names.checkpoint.tensors, {}
    for expert, parts in enumerate(stacked):
        first = 0
        for name in parts:
            rows = tensors[name].shape[0]
            found[name] = rows_of(values, expert, first, rows)
            first += rows
        if first != values.shape[1]:
            return {}
    return found


def rows_of(stack: Tensor, expert: int, first: int, rows: int) -> Tensor:
    """Some rows of one expert of a stack (experts, n_out, n_in), unread: (rows, n_in)."""
    _, n_out, n_in = stack.shape
    name = f"{stack.name}[{expert}]"
    if not isinstance(stack, StoredTensor):
        return Rows(name, stack, expert, first, rows)
    skipped = nbytes_of(stack.dtype, ((expert * n_out + first), n_in))
    return replace(stack, name=name, shape=(rows, n_in), offset=stack.offset + skipped)


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of one expert of a stack that can only be read as a whole."""

    name: str
    stack: Tensor  # (experts, n_out, n_in)
    expert: int
    first: int
    rows: int

    @property
    def dtype(self) -> str:
        return self.stack.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows, self.stack.shape[2]

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.dtype, self.shape)

    def read(self) -> torch.Tensor:
        values = read_tensor(self.stack)[self.expert, self.first : self.first + self.rows]
        return values.clone()
