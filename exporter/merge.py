"""Checkpoint + adapter → the checkpoint's own tensors, merged, one at a time.

In float32 that is the exact sum. In the base's own type it is PEFT's layer that merges, so that
the rounding is PEFT's too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from exporter.adapter import AdapterSpec, LoraPair, Scaling, scaling_of
from exporter.checkpoint import Checkpoint, read_tensor, torch_dtype
from exporter.core.errors import AdapterError, CheckpointError, UnsupportedError

if TYPE_CHECKING:
    import torch

MergeDtype = Literal["float32", "base"]


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Which tensors of the checkpoint an adapter changes; made before any weight is read."""

    checkpoint: Checkpoint
    adapter: AdapterSpec | None
    pairs: dict[str, LoraPair] = field(default_factory=dict)
    """By hub name of the weight. Every pair of the adapter is in it exactly once."""
    scale: float = 1.0
    """What the adapter's own scaling is multiplied by."""
    dtype: MergeDtype = "float32"
    """float32 keeps the exact sum; base rounds it to the stored type, as PEFT does."""


def plan_merge(
    checkpoint: Checkpoint,
    adapter: AdapterSpec | None,
    *,
    scale: float = 1.0,
    dtype: MergeDtype = "float32",
) -> MergePlan:
    """Resolve every pair of the adapter onto the checkpoint.

    Raises AdapterError, naming the first few, when a target is missing or has another shape.
    """
    pairs: dict[str, LoraPair] = {}
    missing: list[LoraPair] = []
    for pair in adapter.pairs if adapter else ():
        name = find_weight(pair, checkpoint)
        if name is None or name in pairs:
            missing.append(pair)
        else:
            pairs[name] = pair
    if adapter:
        refuse_missing(missing, checkpoint, adapter)
        refuse_misfits(pairs, checkpoint, adapter)
        refuse_tied_output(pairs, checkpoint)
    return MergePlan(checkpoint, adapter, pairs, scale, dtype)


def find_weight(pair: LoraPair, checkpoint: Checkpoint) -> str | None:
    """The hub name of the weight a pair changes.

    A base saved without its head lacks the prefix `model.` that the trained model had.
    """
    exact = f"{pair.module}.weight"
    for name in (exact, exact.removeprefix("model."), f"model.{exact}"):
        if name in checkpoint.tensors:
            return name
    return None


def refuse_missing(missing: list[LoraPair], checkpoint: Checkpoint, adapter: AdapterSpec) -> None:
    if missing:
        raise AdapterError(
            f"the adapter changes `{missing[0].module}`, which `{checkpoint.folder}` does not have"
            f" ({len(missing)} of {len(adapter.pairs)} modules are missing)",
            hint=other_base(adapter),
        )


def refuse_misfits(
    pairs: dict[str, LoraPair], checkpoint: Checkpoint, adapter: AdapterSpec
) -> None:
    misfits = [
        f"`{name}` is {list(stored)} in the base and {list(trained)} in the adapter"
        for name, pair in pairs.items()
        if (stored := checkpoint.tensors[name].shape)
        != (trained := (pair.b.shape[0], pair.a.shape[1]))
    ]
    if misfits:
        more = f"\n  and {len(misfits) - 3} more" if len(misfits) > 3 else ""  # noqa: PLR2004 - few enough to read
        raise AdapterError(
            "the adapter was trained on another base:\n  " + "\n  ".join(misfits[:3]) + more,
            hint=other_base(adapter),
        )


def refuse_tied_output(pairs: dict[str, LoraPair], checkpoint: Checkpoint) -> None:
    tied = checkpoint.config.get("tie_word_embeddings") is True
    for name in pairs:
        if tied and name.endswith(("embed_tokens.weight", "lm_head.weight")):
            raise UnsupportedError(
                f"the adapter changes `{name}`, which the base ties to its other end",
                hint="merging into tied embeddings is not possible so far;"
                " train without embed_tokens and lm_head as targets",
            )


def other_base(adapter: AdapterSpec) -> str:
    return (
        f"it was trained on {adapter.base!r}: pass that as --base"
        if adapter.base
        else ("pass the base it was trained on as --base")
    )


class MergedTensors:
    """The checkpoint's tensors by hub name, merged when they are read."""

    def __init__(self, plan: MergePlan) -> None:
        """Store the plan; the adapter's scalings are worked out, and may be refused, here."""
        self.plan = plan
        self._scalings = {
            name: scaling_of(plan.adapter, pair)
            for name, pair in plan.pairs.items()
            if plan.adapter is not None
        }

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.plan.checkpoint.tensors)

    def stored_dtype(self, name: str) -> torch.dtype:
        return torch_dtype(self.plan.checkpoint.tensors[name].dtype)

    def dtype(self, name: str) -> torch.dtype:
        """The type that `read` gives: the stored one, or float32 for an exact merge."""
        import torch

        exact = name in self.plan.pairs and self.plan.dtype == "float32"
        return torch.float32 if exact else self.stored_dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.plan.checkpoint.tensors[name].shape

    def read(self, name: str) -> torch.Tensor:
        """One tensor, merged where the adapter changes it.

        Raises CheckpointError or AdapterError when a value is NaN or infinite.
        """
        weight = read_tensor(self.plan.checkpoint.tensors[name])
        pair = self.plan.pairs.get(name)
        if pair is None:
            refuse_non_finite(name, weight, merged=False)
            return weight
        a, b = (read_tensor(half).float() for half in (pair.a, pair.b))
        scaling, scale = self._scalings[name], self.plan.scale
        if self.plan.dtype == "float32":
            # the whole of plain LoRA, without a temporary of the weight's size
            merged = weight.float().addmm_(b, a, alpha=scaling.value * scale)  # (n_out, n_in)
        else:
            merged = merge_as_peft(weight, a, b, scaling=scaling, scale=scale)
        if not is_finite(merged):
            refuse_non_finite(name, read_tensor(self.plan.checkpoint.tensors[name]), merged=False)
            refuse_non_finite(name, merged, merged=True)
        return merged


def merge_as_peft(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, scaling: Scaling, scale: float
) -> torch.Tensor:
    """Let PEFT's own layer merge a pair into `weight`, in place and with PEFT's rounding.

    weight: (n_out, n_in) in its stored type; a: (rank, n_in), b: (n_out, rank) in float32,
    which is what PEFT trains and merges in whatever the file holds.
    """
    import torch
    from peft.tuners.lora import LoraConfig
    from peft.tuners.lora.layer import Linear

    config = LoraConfig(r=scaling.rank, lora_alpha=1, init_lora_weights=False)
    with torch.device("meta"):
        base = torch.nn.Linear(a.shape[1], b.shape[0], bias=False)
        layer: Any = Linear(base, "default", config=config, r=scaling.rank, lora_alpha=1)
    for module, values in (
        (layer.get_base_layer(), weight),
        (layer.lora_A["default"], a),
        (layer.lora_B["default"], b),
    ):
        module.weight = torch.nn.Parameter(values, requires_grad=False)
    layer.scaling["default"] = scaling.value * scale
    layer.merge()
    merged = layer.get_base_layer().weight.data
    assert isinstance(merged, torch.Tensor)
    return merged


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether every value is a number; the sum tells in one pass, unless it overflows."""
    import torch

    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize == 1:
        return True
    if torch.isfinite(tensor.sum(dtype=torch.float32)):
        return True
    return bool(torch.isfinite(tensor).all())


def refuse_non_finite(name: str, tensor: torch.Tensor, *, merged: bool) -> None:
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


def describe(plan: MergePlan) -> str:
    """The plan as one line for people."""
    if plan.adapter is None:
        return f"no adapter: {len(plan.checkpoint.tensors)} tensors as they are"
    ranks = sorted({pair.rank for pair in plan.pairs.values()})
    return (
        f"{len(plan.pairs)} of {len(plan.checkpoint.tensors)} tensors changed by the adapter"
        f' (rank {", ".join(map(str, ranks))}; "{plan.dtype}" sums)'
    )
