"""What an adapter's modules are in a checkpoint, and the words for those that are not there."""

from __future__ import annotations

from dataclasses import dataclass, field

from exporter.adapter import AdapterSpec, LoraPair
from exporter.checkpoint import Checkpoint
from exporter.core.errors import AdapterError
from exporter.steps import Kind

# Models whose linear layers are GPT-2's Conv1D, but for their heads.
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
FEW = 3  # misfits that a message shows


@dataclass(slots=True)
class Problems:
    """What of an adapter found no place; told all at once."""

    adapter: AdapterSpec
    checkpoint: Checkpoint
    missing: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)

    def misfit(self, name: str, base: tuple[int, ...], trained: tuple[int, ...]) -> None:
        self.misfits.append(
            f"`{name}` is {list(base)} in the base and {list(trained)} in the adapter"
        )

    def refuse(self) -> None:
        """Raise AdapterError if there was any."""
        if self.missing:
            total = len(self.adapter.pairs) or len(self.adapter.tensors)
            raise AdapterError(
                f"the adapter changes `{self.missing[0]}`, which `{self.checkpoint.folder}` does"
                f" not have ({len(self.missing)} of {total} modules are missing)",
                hint=other_base(self.adapter),
            )
        if self.misfits:
            more = f"\n  and {len(self.misfits) - FEW} more" if len(self.misfits) > FEW else ""
            raise AdapterError(
                "the adapter was trained on another base:\n  "
                + "\n  ".join(self.misfits[:FEW])
                + more,
                hint=other_base(self.adapter),
            )


def other_base(adapter: AdapterSpec) -> str:
    return (
        f"it was trained on {adapter.base!r}: pass that as --base"
        if adapter.base
        else "pass the base it was trained on as --base"
    )


def kind_of(pair: LoraPair, name: str, checkpoint: Checkpoint) -> Kind:
    """How the module's weight is stored."""
    if pair.embedding:
        return "embedding"
    return "conv1d" if is_conv1d(name.rpartition(".")[0], checkpoint) else "linear"


def is_conv1d(module: str, checkpoint: Checkpoint) -> bool:
    """Whether it is GPT-2's kind of linear layer, which stores its weight as (in, out)."""
    leaf = module.rpartition(".")[2]
    is_head = leaf.endswith("head") or leaf in ("score", "summary", "classifier")
    return checkpoint.config.get("model_type") in CONV1D_MODELS and not is_head


def trained_rows(adapter: AdapterSpec, module: str) -> tuple[int, ...]:
    """The token ids whose rows were trained: one list, or one for each module."""
    setting = "token_indices" if adapter.kind == "TRAINABLE_TOKENS" else "trainable_token_indices"
    ids = adapter.config.get(setting)
    if isinstance(ids, dict):
        fits = (key for key in ids if module == key or module.endswith(f".{key}"))
        ids = ids.get(next(fits, ""))
    if not isinstance(ids, list) or not all(type(n) is int and n >= 0 for n in ids):
        raise AdapterError(
            f"the adapter's config names no tokens for `{module}` ({setting}={ids!r})",
            hint="restore the adapter_config.json that PEFT wrote",
        )
    return tuple(ids)


def is_new_module(name: str, adapter: AdapterSpec) -> bool:
    """Whether a tensor belongs to a head that training added, which no base has.

    PEFT saves every module whose name ends so: `classifier` is also DistilBERT's `pre_classifier`.
    """
    saved = adapter.config.get("modules_to_save")
    heads = (
        tuple(head for head in saved if isinstance(head, str)) if isinstance(saved, list) else ()
    )
    return bool(heads) and any(part.endswith(heads) for part in name.split(".")[:-1])
