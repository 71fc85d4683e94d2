"""An adapter's update of a weight as a product of two matrices that are not multiplied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.convert.low_rank import MERGED_INSTEAD, CannotFollowError, Product
from exporter.convert.retraced import MATRIX, Rearrange, retraced
from exporter.core.errors import AdapterError, UnsupportedError
from exporter.inputs.lazy_tensor import read_tensor
from exporter.merge.apply import is_finite, split_experts
from exporter.merge.operations import (
    ExpertSum,
    LoraSum,
    MergePlan,
    PartSum,
    Replace,
    StackSum,
    Step,
)

if TYPE_CHECKING:
    import torch


def product_of(name: str, plan: MergePlan) -> Product | None:
    """An adapter's update of one tensor of the checkpoint, with its scaling in b.

    Raises UnsupportedError for a change that a GGUF adapter cannot express, AdapterError for NaN or
    infinite values.
    """
    change = plan.changes[name]
    steps = [step for step in change.steps if not is_unchanged(step, name, plan)]
    if not steps:
        return None
    found = halves_of(steps[0], change.shape)
    if found is None:
        raise UnsupportedError(
            f"a GGUF adapter cannot hold what the adapter does to `{name}`"
            f" ({type(steps[0]).__name__})",
            hint=MERGED_INSTEAD,
        )
    if len(steps) > 1:
        raise UnsupportedError(f"`{name}` is changed more than once", hint=MERGED_INSTEAD)
    a, b = found
    if not is_finite(a) or not is_finite(b):
        raise AdapterError(
            f"the adapter's matrices for `{name}` hold NaN or infinite values",
            hint="the training diverged: use an earlier checkpoint of the adapter",
        )
    return Product(a, b, frozenset({name}))


def halves_of(step: Step, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A as (…, rank, n_in) and B as (…, n_out, rank), scaled; None for a step without a pair.

    shape: the weight's, (…, n_out, n_in).
    """
    match step:
        case LoraSum():
            a, b = (read_tensor(half).float() for half in (step.pair.a, step.pair.b))
            scaling, turned = step.scaling * step.scale, step.kind != "linear"
        case ExpertSum():
            a, b = split_experts(step)  # (experts, rank, in), (experts, out, rank)
            scaling, turned = step.scaling, step.transposed
            if step.expert is not None:
                a, b = a[step.expert], b[step.expert]
        case StackSum():
            a, b = stacked_parts(step, shape)
            scaling, turned = 1.0, step.transposed
        case PartSum():
            a, b = parts_in_rows(step, shape[0])
            scaling, turned = 1.0, False
        case _:
            return None
    if turned:
        a, b = b.transpose(-1, -2), a.transpose(-1, -2)
    if isinstance(step, ExpertSum) and step.expert is not None:
        b = b[step.first_row : step.first_row + shape[0]]
    return a, b * scaling


def parts_in_rows(step: PartSum, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Join pairs for parts of a tensor: A as (ranks, in), B as (rows, ranks), scaled."""
    import torch

    pairs = [part.pair for _, part in step.parts]
    a = torch.cat([read_tensor(pair.a).float() for pair in pairs])
    b, first_rank = torch.zeros(rows, len(a)), 0
    for first, part in step.parts:
        values = read_tensor(part.pair.b).float() * part.scaling * part.scale
        b[first : first + len(values), first_rank : first_rank + values.shape[1]] = values
        first_rank += values.shape[1]
    return a, b


def stacked_parts(step: StackSum, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Join pairs of single experts: A as (experts, rank, in), B as (experts, out, rank).

    shape: of the stack, (experts, n_out, n_in) or transposed; B contains the scaling.
    """
    import torch

    experts, n_out, n_in = (shape[0], shape[2], shape[1]) if step.transposed else shape
    ranks = [0] * experts
    places = []
    for part in step.parts:
        places.append(ranks[part.expert])
        ranks[part.expert] += part.pair.rank
    a, b = torch.zeros(experts, max(ranks), n_in), torch.zeros(experts, n_out, max(ranks))
    for part, first in zip(step.parts, places, strict=True):
        here = slice(first, first + part.pair.rank)
        a[part.expert, here] = read_tensor(part.pair.a).float()
        b[part.expert, part.rows, here] = read_tensor(part.pair.b).float() * part.scaling
    return a, b


def is_unchanged(step: object, name: str, plan: MergePlan) -> bool:
    """Whether a step only repeats the base's embedding, which PEFT saves beside its LoRA.

    Raises UnsupportedError for added tokens.
    """
    if not isinstance(step, Replace):
        return False
    source = plan.changes[name].source
    if source is None or source.shape != step.values.shape:
        raise UnsupportedError(
            f"the adapter has {step.values.shape[0]} tokens for `{name}`, the base has"
            f" {source.shape[0] if source else 'none'}: a GGUF adapter cannot add tokens",
            hint=MERGED_INSTEAD,
        )
    return True


def zero_product(shape: tuple[int, ...]) -> Product:
    """The zero update (…, n_out, n_in) of an untrained expert among trained ones."""
    import torch

    return Product(torch.zeros(1, shape[-1]), torch.zeros(*shape[:-1], 1), frozenset())


def adds_something(product: Product | None) -> bool:
    return product is not None and not product.is_zero


def moved(product: Product, rearrange: Rearrange) -> list[tuple[str, Product]]:
    """The class's rearrangement of one product, by GGUF name; empty for a zero update."""
    try:
        try:
            return list(rearrange(product))
        except CannotFollowError:
            if product.ndim != MATRIX:
                raise
            return retraced(product, rearrange)
    except UnsupportedError:
        if product.is_zero:
            return []
        raise
