"""Checkpoint + adapter → the checkpoint's own tensors, merged, one at a time.

The maths is PEFT's own: each adapted weight is put into PEFT's layer and merged by it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from exporter.adapter import AdapterSpec, LoraPair
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
        """Store the plan; the adapter's config is turned into PEFT's at the first merge."""
        self.plan = plan
        self._lora_config: Any = None  # peft.LoraConfig, which is untyped

    def check(self) -> None:
        """Compare the adapter's ranks with its config, before any weight is read.

        Raises AdapterError: PEFT would refuse such an adapter too.
        """
        for pair in self.plan.pairs.values():
            rank, _ = self._rank_and_alpha(pair)
            if rank != pair.rank:
                raise AdapterError(
                    f"the adapter's config says rank {rank} for `{pair.module}`,"
                    f" its matrices have {pair.rank}",
                    hint="its config and its weights are not of one training; copy both again",
                )

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
        if self.plan.dtype == "float32":
            weight = weight.float()
        merged = self._merge(weight, pair)
        if not is_finite(merged):
            refuse_non_finite(name, read_tensor(self.plan.checkpoint.tensors[name]), merged=False)
            refuse_non_finite(name, merged, merged=True)
        return merged

    def _merge(self, weight: torch.Tensor, pair: LoraPair) -> torch.Tensor:
        """Let PEFT's own layer merge one pair into `weight`, in place: (n_out, n_in)."""
        import torch

        layer = self._layer(pair)
        layer.get_base_layer().weight = torch.nn.Parameter(weight, requires_grad=False)
        for half, stored in ((layer.lora_A, pair.a), (layer.lora_B, pair.b)):
            # PEFT trains and merges in float32 whatever the file holds
            values = read_tensor(stored).float()
            half["default"].weight = torch.nn.Parameter(values, requires_grad=False)
        layer.scaling["default"] *= self.plan.scale
        layer.merge()
        merged = layer.get_base_layer().weight.data
        assert isinstance(merged, torch.Tensor)
        return merged

    def _layer(self, pair: LoraPair) -> Any:
        """PEFT's LoRA layer for one module, with no memory behind its weights yet."""
        import torch
        from peft.tuners.lora.layer import Linear

        rank, alpha = self._rank_and_alpha(pair)
        with torch.device("meta"):
            base = torch.nn.Linear(pair.a.shape[1], pair.b.shape[0], bias=False)
            return Linear(
                base, adapter_name="default", config=self._config(), r=rank, lora_alpha=alpha
            )

    def _rank_and_alpha(self, pair: LoraPair) -> tuple[int, float]:
        from peft.utils.other import get_pattern_key

        config = self._config()
        rank_key = get_pattern_key(config.rank_pattern.keys(), pair.module)
        alpha_key = get_pattern_key(config.alpha_pattern.keys(), pair.module)
        return (
            config.rank_pattern.get(rank_key, config.r),
            config.alpha_pattern.get(alpha_key, config.lora_alpha),
        )

    def _config(self) -> Any:
        if self._lora_config is None:
            assert self.plan.adapter is not None
            self._lora_config = peft_config(self.plan.adapter)
        return self._lora_config


def peft_config(adapter: AdapterSpec) -> Any:
    """The adapter's settings as PEFT's own object; ones it does not know were checked to be off."""
    from peft.tuners.lora import LoraConfig

    known = {
        key: value
        for key, value in adapter.config.items()
        if key in LoraConfig.__dataclass_fields__
    }
    try:
        config = LoraConfig(**known)
    except (TypeError, ValueError) as error:
        raise AdapterError(
            f"`{adapter.folder / 'adapter_config.json'}` does not make sense: {error}",
            hint="restore the file that PEFT wrote",
        ) from error
    config.init_lora_weights = False  # the weights come from the file
    config.lora_dropout = 0.0
    return config


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
        f" (rank {', '.join(map(str, ranks))}; {json.dumps(plan.dtype)} sums)"
    )
