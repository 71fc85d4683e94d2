"""Plans an extraction: the tensors that become LoRA pairs, stay whole, or are dropped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.core.events import Note, Report, Warn
from exporter.inputs.checkpoint import Checkpoint
from exporter.inputs.lazy_tensor import read_tensor

PREFIX = "base_model.model."
CONV1D = ("gpt2", "openai-gpt")
"""Model types whose linear weights transformers stores as (inputs, outputs)."""
TOKENS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "embeddings", "tok_embeddings",
          "shared")  # fmt: skip
OTHERS = ("wpe", "embed_positions", "position_embeddings", "token_type_embeddings")
"""transformers' names of other embedding tables; only those in TOKENS may be tied to the head."""
HEAD = "lm_head"
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Pair:
    """One matrix whose change becomes B @ A."""

    source: str
    """Its tensor's name in both checkpoints."""
    module: str
    shape: tuple[int, int]
    """Shape (rows, columns) of B @ A."""
    transposed: bool = False
    """Whether the stored matrix is the transpose of B @ A."""
    is_embedding: bool = False
    is_twin: bool = False
    """Whether it is the transposed pair of the embedding before it."""

    @property
    def keys(self) -> tuple[str, str]:
        """The names of A and B in the adapter."""
        named = f"{PREFIX}{self.module}."
        if self.is_embedding:  # PEFT's Embedding has plain parameters
            return f"{named}lora_embedding_A", f"{named}lora_embedding_B"
        return f"{named}lora_A.weight", f"{named}lora_B.weight"


@dataclass(frozen=True, slots=True)
class ExtractPlan:
    """The adapter before any matrix is decomposed."""

    rank: int
    pairs: tuple[Pair, ...]
    whole: tuple[str, ...]
    """Tensors of modules that the adapter replaces."""
    biases: tuple[str, ...]
    """Biases beside the pairs, which the adapter replaces."""
    left_out: tuple[str, ...]
    """Changed tensors that keep the base's values."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of the fine-tune's tensors."""
    matrices: tuple[str, ...] = ()
    """The modules of all matrices in the base."""
    fan_in_fan_out: bool = False
    task: str | None = None

    @property
    def replaced(self) -> dict[str, str]:
        """The fine-tune's name of each replaced tensor -> its name in the adapter."""
        named = {name: f"{PREFIX}{name}" for name in self.whole}
        return named | {name: f"{PREFIX}{module_of(name)}.base_layer.bias" for name in self.biases}

    def settings(self, base: str) -> dict[str, object]:
        """The contents of adapter_config.json, with PEFT's names."""
        return {
            "peft_type": "LORA",
            "task_type": self.task,
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.rank,
            "lora_dropout": 0.0,
            "bias": "all" if self.biases else "none",
            "fan_in_fan_out": self.fan_in_fan_out,
            "ensure_weight_tying": any(pair.is_twin for pair in self.pairs),
            "inference_mode": True,
            "target_modules": in_short([pair.module for pair in self.pairs], self.matrices),
            "modules_to_save": sorted({module_of(name) for name in self.whole}) or None,
        }


def in_short(modules: list[str], matrices: tuple[str, ...]) -> list[str]:
    """The modules by their last names; in full where matrices beside them share the last name."""
    chosen = set(modules)

    def last(module: str) -> str:
        return module.rpartition(".")[2]

    partly = {last(module) for module in matrices if module not in chosen}
    return sorted({module if last(module) in partly else last(module) for module in modules})


def plan_extraction(
    tuned: Checkpoint, base: Checkpoint, rank: int, *, only_pairs: bool = False, report: Report
) -> ExtractPlan:
    """Pair the tensors of both models, and decide how each changed one is stored.

    only_pairs: drop the parts that a GGUF adapter lacks. Raises CheckpointError if the two differ
    in architecture or are equal.
    """
    refuse_others(tuned, base)
    changed = [name for name in tuned.tensors if is_changed(tuned, base, name)]
    if not changed:
        raise CheckpointError(
            f"`{tuned.folder}` and `{base.folder}` hold the same weights",
            hint="is --base the model that the fine-tune began from?",
        )
    conv1d, is_tied = base.config.get("model_type") in CONV1D, not has_head(base)
    pairs = [
        pair
        for name in changed
        if is_matrix(name, tuned) and not is_grown(name, tuned, base)
        for pair in pairs_of(name, tuned.tensors[name].shape, conv1d=conv1d, is_tied=is_tied)
    ]
    paired = {pair.module for pair in pairs}
    others = [name for name in changed if name not in {pair.source for pair in pairs}]
    biases = [name for name in others if name.endswith(".bias") and module_of(name) in paired]
    saved = {
        module_of(name)
        for name in others
        if name not in biases
        and name.endswith((".weight", ".bias"))
        and not is_stacked(name, tuned)
    }
    whole = [name for name in tuned.tensors if module_of(name) in saved]
    left_out = [name for name in others if name not in biases and name not in whole]
    if only_pairs:
        left_out, whole, biases = others, [], []
    say(whole + biases, left_out, report)
    return ExtractPlan(
        rank, tuple(pairs), tuple(whole), tuple(biases), tuple(left_out),
        {name: tensor.shape for name, tensor in tuned.tensors.items()},
        tuple(module_of(name) for name in base.tensors if is_matrix(name, base)),
        fan_in_fan_out=conv1d, task=task_of(tuned),
    )  # fmt: skip


def is_matrix(name: str, checkpoint: Checkpoint) -> bool:
    shape = checkpoint.tensors[name].shape
    return len(shape) == 2 and name.endswith(".weight")  # noqa: PLR2004 - a matrix


def is_stacked(name: str, checkpoint: Checkpoint) -> bool:
    """Whether a tensor has more than two dimensions: stacked experts, a convolution."""
    return len(checkpoint.tensors[name].shape) > 2  # noqa: PLR2004 - a matrix


def is_grown(name: str, tuned: Checkpoint, base: Checkpoint) -> bool:
    return name not in base.tensors or tuned.tensors[name].shape != base.tensors[name].shape


def refuse_others(tuned: Checkpoint, base: Checkpoint) -> None:
    """Raise CheckpointError for different architectures, UnsupportedError for a quantized model."""
    if tuned.architecture != base.architecture:
        raise CheckpointError(
            f"`{tuned.folder}` is a {tuned.architecture}, and `{base.folder}` a"
            f" {base.architecture}",
            hint="pass as --base the model that the fine-tune began from",
        )
    missing = sorted(base.tensors.keys() - tuned.tensors.keys())
    if missing and not missing[0].startswith(HEAD):
        raise CheckpointError(
            f"`{tuned.folder}` has no `{missing[0]}`, which the base has ({len(missing)} such)",
            hint="pass as --base the model that the fine-tune began from",
        )
    for checkpoint in (tuned, base):
        packed = [n for n, tensor in checkpoint.tensors.items() if tensor.dtype not in FLOATS]
        if packed and "quantization_config" in checkpoint.config:
            raise UnsupportedError(
                f"`{checkpoint.folder}` is quantized (`{packed[0]}` is"
                f" {checkpoint.tensors[packed[0]].dtype})",
                hint="use the 16-bit release: what training changed is smaller than 4 bits show",
            )
    other = [
        name for name, tensor in base.tensors.items()
        if name in tuned.tensors and tuned.tensors[name].shape[1:] != tensor.shape[1:]
    ]  # fmt: skip
    if other:
        raise CheckpointError(
            f"`{other[0]}` is {list(tuned.tensors[other[0]].shape)} in the fine-tune and"
            f" {list(base.tensors[other[0]].shape)} in the base",
            hint="pass as --base the model that the fine-tune began from",
        )


def is_changed(tuned: Checkpoint, base: Checkpoint, name: str) -> bool:
    import torch

    if tuned.tensors[name].dtype not in FLOATS:
        return False
    return is_grown(name, tuned, base) or not torch.equal(
        read_tensor(tuned.tensors[name]).float(), read_tensor(base.tensors[name]).float()
    )


def pairs_of(name: str, shape: tuple[int, ...], *, conv1d: bool, is_tied: bool) -> Iterable[Pair]:
    """The pairs of one matrix: a tied embedding has two, for embedding and head."""
    module, (rows, columns) = module_of(name), shape
    last = module.rpartition(".")[2]
    if last in (*TOKENS, *OTHERS):
        yield Pair(name, module, (columns, rows), transposed=True, is_embedding=True)
        if is_tied and last in TOKENS:
            yield Pair(name, HEAD, (rows, columns), is_twin=True)
    elif conv1d and module != HEAD:
        yield Pair(name, module, (columns, rows), transposed=True)
    else:
        yield Pair(name, module, (rows, columns))


def module_of(name: str) -> str:
    return name.rpartition(".")[0]


def has_head(checkpoint: Checkpoint) -> bool:
    return any(name.startswith(HEAD) for name in checkpoint.tensors)


def task_of(checkpoint: Checkpoint) -> str | None:
    """PEFT's task for an architecture, which decides the class that loads the adapter."""
    tasks = {
        "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM",
        "ForConditionalGeneration": "SEQ_2_SEQ_LM", "ForSequenceClassification": "SEQ_CLS",
        "ForTokenClassification": "TOKEN_CLS",
    }  # fmt: skip
    if "vision_config" in checkpoint.config:
        return "CAUSAL_LM"
    found = (task for end, task in tasks.items() if checkpoint.architecture.endswith(end))
    return next(found, None)


def say(replaced: list[str], left_out: list[str], report: Report) -> None:
    if replaced:
        report(
            Note(
                f"{len(replaced)} tensors that are not matrices, or have grown, are stored whole"
                f" in the adapter, such as `{replaced[0]}`"
            )
        )
    if left_out:
        report(
            Warn(
                f"{len(left_out)} changed tensors cannot be stored in such an adapter and keep the"
                f" base's values, such as `{left_out[0]}`"
            )
        )
