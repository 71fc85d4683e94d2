"""Adapters of stacked experts, onto a checkpoint that keeps its experts apart, or stacked too.

transformers 5 holds the experts of a layer as one parameter of three dimensions, and PEFT trains
one pair of matrices for all of them; most checkpoints have a weight for each expert. So each
expert's own rows are cut out of the pair, and the stack is never built.
"""

from __future__ import annotations

from dataclasses import replace

from exporter.adapter import AdapterSpec, LoraPair, scaling_of
from exporter.core.errors import AdapterError
from exporter.names import Names
from exporter.steps import ExpertSum

# in the order in which models declare them, which is the order in which PEFT nests its wrappers
PARAMETERS = ("gate_up_proj", "down_proj")
STACK = 3  # dimensions
# models whose stacks are (experts, in, out) and not (experts, out, in)
INPUT_FIRST = ("gpt_oss", "aria", "openai_privacy_filter")
FIRST_RIGHT_PEFT = (0, 19)


def plan_experts(
    adapter: AdapterSpec, pair: LoraPair, names: Names, *, scale: float
) -> dict[str, ExpertSum] | str:
    """One step for each weight that a stacked pair changes, by its name in the checkpoint.

    Empty when the module has no experts; a sentence when their shapes are others.
    """
    parameter = parameter_of(adapter, pair)
    module = names.module(pair.module)
    if parameter is None or module is None:
        return {}
    tensors = names.checkpoint.tensors
    whole = f"{module}.{parameter}"
    if whole in tensors:
        return plan_stack(adapter, pair, whole, names, scale=scale)
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


def plan_stack(
    adapter: AdapterSpec, pair: LoraPair, name: str, names: Names, *, scale: float
) -> dict[str, ExpertSum] | str:
    """The checkpoint keeps the experts as one tensor, too."""
    shape = names.checkpoint.tensors[name].shape
    if len(shape) != STACK:
        return {}
    parameter = name.rpartition(".")[2]
    step = fit(adapter, pair, shape, names, parameter=parameter, scale=scale)
    return step if isinstance(step, str) else {name: step}


def plan_single(adapter: AdapterSpec, pair: LoraPair, *, scale: float) -> ExpertSum:
    """A plain weight that was targeted as a parameter, such as a router's: a stack of one."""
    scaling = scaling_of(adapter, replace(pair, module=f"{pair.module}.weight"))
    return ExpertSum(pair.a, pair.b, 1, 0, 0, scaling.value * scale, False, False)


def parameter_of(adapter: AdapterSpec, pair: LoraPair) -> str | None:
    """Which parameter of the module a pair is for, by how deep PEFT nested its wrapper."""
    mine = [name for name in PARAMETERS if is_targeted(adapter, f"{pair.module}.{name}")]
    return mine[-1 - pair.nested] if pair.nested < len(mine) else None


def is_targeted(adapter: AdapterSpec, parameter: str) -> bool:
    """Whether the adapter was told to train this parameter itself and not a module."""
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
    """A step for all experts of a stack of `shape`, or why the pair does not fit it."""
    experts, first, last = shape
    n_out, n_in = pair.b.shape[0], pair.a.shape[1]
    straight, turned = (n_out, n_in) == (first, last), (n_in, n_out) == (first, last)
    if pair.rank % experts or not (straight or turned):
        return (
            f"`{pair.module}.{parameter}` is {list(shape)} in the base, and the adapter's"
            f" matrices are {list(pair.a.shape)} and {list(pair.b.shape)}"
        )
    if straight and turned:
        turned = stores_inputs_first(adapter, names)
    scaling = scaling_of(
        adapter, replace(pair, module=f"{pair.module}.{parameter}"), experts=experts
    )
    return ExpertSum(
        pair.a, pair.b, experts, None, 0, scaling.value * scale, turned, expert_major(adapter)
    )


def stores_inputs_first(adapter: AdapterSpec, names: Names) -> bool:
    """For square experts, where the shapes do not tell: by the model, and by PEFT's version."""
    if names.checkpoint.config.get("model_type") in INPUT_FIRST:
        return True
    version = str(adapter.config.get("peft_version") or "")
    numbers = [int(part) for part in version.split(".")[:2] if part.isdecimal()]
    if len(numbers) != len(FIRST_RIGHT_PEFT):
        raise AdapterError(
            f"`{adapter.folder}` adapts square experts and does not say by which version of PEFT"
            " it was trained, which decides how to read it",
            hint='write "peft_version": "0.19.0" (or what it was) into its adapter_config.json',
        )
    return tuple(numbers) < FIRST_RIGHT_PEFT


def expert_major(adapter: AdapterSpec) -> bool:
    """Whether the adapter says that its B is ordered by expert first."""
    return str(adapter.config.get("lora_B_layout") or "").replace("-", "_") == "expert_major"
