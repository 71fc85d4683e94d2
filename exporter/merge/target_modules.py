"""Finds the kind of an adapter's modules in a checkpoint, and reports those that do not fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from exporter.core.errors import AdapterError
from exporter.core.paths import last_part, repo_at
from exporter.inputs.adapter_spec import AdapterSpec, LoraPair
from exporter.inputs.checkpoint import Checkpoint
from exporter.inputs.lazy_tensor import read_tensor
from exporter.merge.operations import Kind

# models whose linear layers are GPT-2's Conv1D, except their heads
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
FEW = 3  # misfits shown in a message


@dataclass(slots=True)
class Problems:
    """The adapter's parts without a place in the base, reported together."""

    adapter: AdapterSpec
    checkpoint: Checkpoint
    missing: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)
    untrained: list[str] = field(default_factory=list)
    """Modules that are missing as well, but add nothing: their B is zero."""

    def misfit(self, name: str, base: tuple[int, ...], trained: tuple[int, ...]) -> None:
        self.misfits.append(
            f"`{name}` is {list(base)} in the base and {list(trained)} in the adapter"
        )

    def lack(self, pair: LoraPair) -> None:
        """Record a module that the base lacks; it matters only if the pair adds something."""
        is_zero = self.adapter.is_plain and adds_nothing(pair)
        (self.untrained if is_zero else self.missing).append(pair.module)

    def refuse(self, *, some_fit: bool) -> None:
        """Raise AdapterError for the recorded problems, if any.

        some_fit: other parts of the adapter have a place.
        """
        if not some_fit:
            self.missing += self.untrained
        hint = other_base(self.adapter, self.checkpoint)
        if self.missing:
            total = len(self.adapter.pairs) or len(self.adapter.tensors)
            raise AdapterError(
                f"the adapter changes `{self.missing[0]}`, which `{self.checkpoint.folder}` does"
                f" not have ({len(self.missing)} of {total} modules are missing)",
                hint=hint,
            )
        if self.misfits:
            more = f"\n  and {len(self.misfits) - FEW} more" if len(self.misfits) > FEW else ""
            what = (
                f"the adapter does not fit `{self.checkpoint.folder}`"
                if is_named_base(self.adapter, self.checkpoint)
                else "the adapter was trained on another base"
            )
            raise AdapterError(f"{what}:\n  " + "\n  ".join(self.misfits[:FEW]) + more, hint=hint)


def adds_nothing(pair: LoraPair) -> bool:
    """Whether a plain pair adds only zeros, as an untrained one does."""
    return not (bool(read_tensor(pair.b).any()) and bool(read_tensor(pair.a).any()))


def lost_rows(name: str, adapter: int, base: int) -> AdapterError:
    """The error for tokens that were added before training and whose initial values are lost."""
    return AdapterError(
        f"the adapter was trained with {adapter} tokens in `{name}`, and the base has {base}: what"
        " the new tokens began with was random, and the adapter does not hold it",
        hint="pass as --base the model that training began with, saved after its embeddings were"
        " resized; if the trained one is still in memory, save its adapter again with"
        " save_embedding_layers=True",
    )


def other_base(adapter: AdapterSpec, checkpoint: Checkpoint) -> str:
    """A hint for a base that does not fit; never the given one."""
    if adapter.base is None:
        return "pass the base it was trained on as --base"
    if is_named_base(adapter, checkpoint):
        return (
            f"it names {adapter.base!r} itself: was it trained on a changed copy (more tokens,"
            " other layers), or by a tool that calls its modules otherwise?"
            " pass that copy as --base, or save the adapter with PEFT"
        )
    if last_part(adapter.base) == checkpoint.name:
        return (
            f"it was trained on {adapter.base!r}: is `{checkpoint.folder}` that model, unchanged?"
            " if not, pass that as --base"
        )
    return f"it was trained on {adapter.base!r}: pass that as --base"


def is_named_base(adapter: AdapterSpec, checkpoint: Checkpoint) -> bool:
    """Whether the given base is the one that the adapter names."""
    if adapter.base is None:
        return False
    repo, _ = repo_at(checkpoint.folder)
    return adapter.base == repo or Path(adapter.base).resolve() == checkpoint.folder.resolve()


def weight_layout(pair: LoraPair, name: str, checkpoint: Checkpoint) -> Kind:
    """The layout of the module's weight."""
    if pair.embedding:
        return "embedding"
    return "conv1d" if is_conv1d(name.rpartition(".")[0], checkpoint) else "linear"


def is_conv1d(module: str, checkpoint: Checkpoint) -> bool:
    """Whether the module is GPT-2's Conv1D, which stores its weight as (in, out)."""
    leaf = module.rpartition(".")[2]
    is_head = leaf.endswith("head") or leaf in ("score", "summary", "classifier")
    return checkpoint.config.get("model_type") in CONV1D_MODELS and not is_head


def trained_rows(adapter: AdapterSpec, module: str) -> tuple[int, ...]:
    """The token ids whose rows were trained: one list, or one per module.

    Raises AdapterError if the config has neither.
    """
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

    PEFT matches module names by their end: `classifier` is also DistilBERT's `pre_classifier`.
    """
    saved = adapter.config.get("modules_to_save")
    heads = (
        tuple(head for head in saved if isinstance(head, str)) if isinstance(saved, list) else ()
    )
    return bool(heads) and any(part.endswith(heads) for part in name.split(".")[:-1])
