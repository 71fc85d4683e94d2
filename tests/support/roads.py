"""A tiny model and its adapter, merged by PEFT and by decant."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.inputs.adapter import open_adapter
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import MergeDtype, MergePlan, WeightedAdapter
from exporter.merge.result_files import changed_config

TOKENS = 290  # ids below which no tiny model has a special one


@dataclass(frozen=True)
class Outcome:
    """The two merged models, and their distances from the unmerged one."""

    plan: MergePlan
    tensors: dict[str, Any]
    """decant's merged tensors, by the checkpoint's names."""
    peft: dict[str, Any]
    """PEFT's merged tensors, as save_pretrained writes them."""
    error: float
    """The largest difference of a logit between decant's merged model and the unmerged forward."""
    peft_error: float
    """The same for PEFT's merged model."""
    effect: float
    """The largest change of a logit by the adapter."""

    @property
    def differing(self) -> list[str]:
        """The tensors that differ from PEFT's, and those that only one side has."""
        import torch

        ours, theirs = (published(tensors) for tensors in (self.tensors, self.peft))
        both = ours.keys() & theirs.keys()
        unlike = [name for name in both if not torch.equal(ours[name], theirs[name])]
        return sorted({*unlike, *(ours.keys() ^ theirs.keys())})


def published(tensors: dict[str, Any]) -> dict[str, Any]:
    """The tensors under the published names: PEFT may save a vision tower under others."""
    return {
        name.replace("vision_tower.vision_model.", "vision_tower."): t
        for name, t in tensors.items()
    }


def train_and_merge(
    base: Path,
    config: Any,
    folder: Path,
    *,
    dtype: MergeDtype = "float32",
    auto: str = "AutoModelForCausalLM",
    prepare: Callable[[Any], object] | None = None,
    rename: Callable[[Path], object] = lambda adapter: None,
) -> Outcome:
    """Give an adapter random values, save it, and merge it with PEFT and with decant.

    prepare changes the base model before and after training alike; rename changes the saved
    adapter's files before decant sees them.
    """
    import torch
    import transformers
    from peft import PeftModel, get_peft_model

    kind = getattr(transformers, auto)
    loaded = torch.float32 if dtype == "float32" else "auto"

    def load(path: Path) -> Any:
        torch.manual_seed(1)
        return kind.from_pretrained(path, dtype=loaded).eval()

    def pair() -> tuple[Any, Any]:
        """Two models to train and to load the adapter into; a copy costs a fifth of a load."""
        if prepare is None:
            return plain, deepcopy(plain)
        models = load(base), load(base)
        for model in models:
            prepare(model)
        return models

    adapter = folder / "adapter"
    plain = load(base)
    before = logits(plain)
    untrained, fresh = pair()
    torch.manual_seed(1)  # some ways to begin draw numbers, and change the base by them
    trained = get_peft_model(untrained, config)
    shake(trained)
    save_adapter(trained, adapter)
    torch.manual_seed(1)
    unmerged = PeftModel.from_pretrained(fresh, adapter).eval()
    expected = logits(unmerged)
    merged = unmerged.merge_and_unload()
    peft_error = difference(logits(merged), expected)
    merged.save_pretrained(folder / "peft")
    rename(adapter)
    plan, tensors = merge(base, adapter, folder / "merged", dtype=dtype)
    return Outcome(
        plan,
        tensors,
        load_tensors(folder / "peft"),
        difference(logits(load(folder / "merged")), expected),
        peft_error,
        difference(expected, before),
    )


def save_adapter(model: Any, folder: Path) -> None:
    """As save_pretrained does, without its model card, which takes longer than all the rest."""
    model.create_or_update_model_card = lambda _: None
    model.save_pretrained(folder)


def merge(
    base: Path, adapter: Path, output: Path, *, dtype: MergeDtype = "float32"
) -> tuple[MergePlan, dict[str, Any]]:
    """Write decant's merged model as a folder for transformers; checks each shape and type."""
    from safetensors.torch import save_file

    adapters = [WeightedAdapter(open_adapter(adapter))]
    plan = plan_merge(open_checkpoint(base), adapters, dtype=dtype)
    merged = MergedTensors(plan)
    tensors = {name: merged.read(name).contiguous() for name in merged.names}
    for name, values in tensors.items():
        assert (tuple(values.shape), values.dtype) == (merged.shape(name), merged.dtype(name)), name
    shutil.copytree(base, output, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    (output / "config.json").write_text(json.dumps(changed_config(plan)))
    return plan, tensors


def load_tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {
        name: values
        for path in sorted(folder.glob("*.safetensors"))
        for name, values in load_file(path).items()
    }


def shake(model: Any) -> None:
    """Change every parameter that training would change."""
    import torch

    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def logits(model: Any) -> Any:
    import torch

    ids = torch.arange(3, 33)[None] * 7 % TOKENS  # (1, 30)
    encoder_decoder = getattr(model.config, "is_encoder_decoder", False)
    more = {"decoder_input_ids": ids[:, :10]} if encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits.float()


def difference(one: Any, other: Any) -> float:
    """The largest difference of logits, over the tokens that both vocabularies have."""
    size = min(one.shape[-1], other.shape[-1])
    return float((one[..., :size] - other[..., :size]).abs().max())
