"""Moves adapters onto a GGUF base: its names, and its order of rows and columns.

A GGUF has no config.json for the converter. So decant finds the converter's class by the GGUF's
architecture, gives it the sizes in the GGUF, and lets it process a probe of each weight that the
adapter changes (gguf_adapter_names.py). An architecture that is not listed is refused, not guessed.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.convert.converter_model import model_of_config
from exporter.convert.low_rank import Product
from exporter.convert.refusals import UNUSABLE
from exporter.core.errors import AdapterError, UnsupportedError
from exporter.core.events import silent
from exporter.core.gguf import Array, GGUFFile, read_gguf
from exporter.core.silence import quiet_libraries
from exporter.gguf_inputs.gguf_adapter_names import InMemory, RowOrigin, probe, read_off
from exporter.gguf_inputs.gguf_base import ARCHITECTURE, WHOLE
from exporter.inputs.adapter_kinds import REPLAYED_INITS, VARIANTS, is_set
from exporter.inputs.adapter_spec import AdapterSpec, LoraPair, scaling_of
from exporter.inputs.gguf_adapter import ARCHITECTURE as ADAPTS
from exporter.inputs.gguf_adapter import EMBEDDING, PREFIX, WEIGHT
from exporter.inputs.lazy_tensor import read_tensor
from exporter.inputs.own_code import no_code_run
from exporter.llamacpp.converter_import import imported, warnings_reported

if TYPE_CHECKING:
    from exporter.inputs.checkpoint import Checkpoint
    from exporter.inputs.lazy_tensor import Tensor
    from exporter.llamacpp.toolchain import Toolchain

CLASSES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "qwen2moe": "Qwen2MoeForCausalLM", "qwen3moe": "Qwen3MoeForCausalLM",
    "gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3": "Gemma3ForCausalLM",
    "phi2": "PhiForCausalLM", "phi3": "Phi3ForCausalLM", "smollm3": "SmolLM3ForCausalLM",
    "granite": "GraniteForCausalLM", "granitemoe": "GraniteMoeForCausalLM",
    "olmo": "OlmoForCausalLM", "olmo2": "Olmo2ForCausalLM", "olmoe": "OlmoeForCausalLM",
    "command-r": "CohereForCausalLM", "cohere2": "Cohere2ForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM", "stablelm": "StableLmForCausalLM",
    "glm4": "Glm4ForCausalLM", "gpt-oss": "GptOssForCausalLM", "seed_oss": "SeedOssForCausalLM",
    "exaone4": "Exaone4ForCausalLM", "ernie4_5": "Ernie4_5ForCausalLM",
    "nemotron": "NemotronForCausalLM", "apertus": "ApertusForCausalLM",
    "arcee": "ArceeForCausalLM", "lfm2": "Lfm2ForCausalLM", "falcon": "FalconForCausalLM",
    "gptneox": "GPTNeoXForCausalLM",
}  # fmt: skip
"""GGUF architecture -> the converter's class that is used for it in practice."""
SIZES = {
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length", "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length", "num_experts": "expert_count",
    "num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
}  # fmt: skip
A, B = "lora_A.weight", "lora_B.weight"
MROPE = "rope.dimension_sections"
"""Key of a vision model's text part, whose weights some classes rearrange differently."""
MAGNITUDE = "lora_magnitude_vector"
HEAD = "output.weight"


def named_in_gguf(
    adapter: AdapterSpec, checkpoint: Checkpoint, toolchain: Toolchain
) -> AdapterSpec:
    """The adapter with its modules under the base's GGUF names.

    Raises AdapterError for an adapter of another base, UnsupportedError for an adapter that needs
    the base's safetensors.
    """
    refuse_more(adapter)
    architecture = str(checkpoint.config[ARCHITECTURE])
    if adapter.origin == "gguf":
        if (adapts := adapter.config.get(ADAPTS)) != architecture:
            raise another(adapter, checkpoint, f"it adapts a {adapts}, not a {architecture}")
        config = {key: value for key, value in adapter.config.items() if key != ADAPTS}
        adapter = replace(adapter, config=config)
        for pair in adapter.pairs:
            refuse_misfit(adapter, checkpoint, pair)
        return adapter
    places = find_places(adapter, checkpoint, architecture, toolchain)
    pairs, ranks, alphas = [], {}, {}
    for pair in adapter.pairs:
        stem, origin = places[pair.module]
        scaling = scaling_of(adapter, pair)
        moved = in_place(pair, stem, origin)
        refuse_misfit(adapter, checkpoint, moved)
        pairs.append(moved)
        ranks[re.escape(stem)] = scaling.rank
        alphas[re.escape(stem)] = scaling.value * scaling.rank
    config = {
        "peft_type": "LORA", "r": adapter.pairs[0].rank, "rank_pattern": ranks,
        "alpha_pattern": alphas, "use_dora": is_set(adapter.config.get("use_dora")),
        "base_model_name_or_path": adapter.base,
    }  # fmt: skip
    return replace(adapter, config=config, pairs=tuple(pairs), renamed=True)


def another(adapter: AdapterSpec, checkpoint: Checkpoint, why: str) -> AdapterError:
    trained_on = f"it was trained on {adapter.base!r}: " if adapter.base else ""
    return AdapterError(
        f"`{adapter.place}` is not of the base `{checkpoint.folder}`: {why}",
        hint=f"{trained_on}pass the base it was trained on as --base",
    )


def refuse_more(adapter: AdapterSpec) -> None:
    """Raise UnsupportedError for parts other than pairs of A and B and DoRA's magnitudes."""
    held = [*adapter.values, *adapter.rows, *adapter.tuner]
    extras = [role for pair in adapter.pairs for role in pair.extras if role != MAGNITUDE]
    variants = [
        name for name in VARIANTS if name != "use_dora" and is_set(adapter.config.get(name))
    ]
    starts = [i for i in (adapter.config.get("init_lora_weights"),) if i in REPLAYED_INITS]
    found = [*held, *extras, *variants, *starts]
    if adapter.kind != "LORA" or found:
        what = f"holds or uses `{found[0]}`" if found else f"is a {adapter.kind} adapter"
        raise UnsupportedError(
            f"`{adapter.place}` {what}: onto a GGUF only plain LoRA and DoRA can be merged",
            hint=WHOLE,
        )


def refuse_misfit(adapter: AdapterSpec, checkpoint: Checkpoint, pair: LoraPair) -> None:
    """Raise an error for a pair that does not fit a weight of the base.

    AdapterError if the weight is missing or has another size, UnsupportedError for tied embeddings
    and experts.
    """
    stem = pair.module.partition("#")[0]
    found = checkpoint.tensors.get(f"{stem}{WEIGHT}")
    if f"{stem}{WEIGHT}" in (f"{EMBEDDING}{WEIGHT}", HEAD) and HEAD not in checkpoint.tensors:
        raise UnsupportedError(
            f"`{adapter.place}` adapts the embedding or the head, and in `{checkpoint.folder}`"
            " both are one tensor",
            hint=WHOLE,
        )
    if found is None:
        raise another(adapter, checkpoint, f"it has no `{stem}{WEIGHT}`")
    if stem != pair.module:
        raise UnsupportedError(
            f"`{adapter.place}` adapts experts (`{stem}`), which cannot be merged into a GGUF",
            hint=WHOLE,
        )
    fits = (pair.b.shape[0], pair.a.shape[1])
    if found.shape != fits:
        sizes = (" × ".join(map(str, shape)) for shape in (fits, found.shape))
        raise another(
            adapter, checkpoint, "its `{}` is for {}, the base's is {}".format(stem, *sizes)
        )


def find_places(
    adapter: AdapterSpec, checkpoint: Checkpoint, architecture: str, toolchain: Toolchain
) -> dict[str, tuple[str, RowOrigin]]:
    """For each module of the adapter, its GGUF name and the origin of its rows.

    Raises UnsupportedError for an architecture without a known class.
    """
    seen = f"{architecture}.{MROPE}" in read_gguf(checkpoint.folder).metadata
    if architecture not in CLASSES or seen:
        raise UnsupportedError(
            f"decant does not know how the weights of a {architecture} were arranged for"
            f" `{checkpoint.folder}`, so it cannot merge an adapter into it",
            hint=WHOLE,
        )
    # some classes read a whole config.json, and warn that it is missing
    with quiet_libraries(), imported(toolchain), warnings_reported(silent), no_code_run():
        import torch

        with torch.inference_mode(mode=False), torch.no_grad():
            try:
                model = converter_of(checkpoint, architecture)
                return {
                    pair.module: place_of(adapter, checkpoint, model, pair)
                    for pair in adapter.pairs
                }
            except UNUSABLE as error:
                raise UnsupportedError(
                    f"llama.cpp's converter cannot say how `{checkpoint.folder}`, a {architecture},"
                    f" is arranged without its config: {type(error).__name__}: {error}",
                    hint=WHOLE,
                ) from error


def converter_of(checkpoint: Checkpoint, architecture: str) -> Any:
    """The converter's class, configured with the sizes in the GGUF."""
    hparams = sizes_of(read_gguf(checkpoint.folder)) | {"architectures": [CLASSES[architecture]]}
    with tempfile.TemporaryDirectory(prefix="decant-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(hparams))
        return model_of_config(checkpoint, Path(folder), hparams)[0]


def sizes_of(file: GGUFFile) -> dict[str, Any]:
    """The model's sizes under their names in config.json."""
    sizes: dict[str, Any] = {}
    for name, key in SIZES.items():
        value = file.metadata.get(f"{file.architecture}.{key}")
        if isinstance(value, Array):  # per layer; the converter's classes take one value
            value = value.items[0] if len(set(value.items)) == 1 else None
        if isinstance(value, int):
            sizes[name] = value
    sizes.setdefault("num_key_value_heads", sizes.get("num_attention_heads"))
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    return sizes | ({"vocab_size": tokens.length} if isinstance(tokens, Array) else {})


def place_of(
    adapter: AdapterSpec, checkpoint: Checkpoint, model: Any, pair: LoraPair
) -> tuple[str, RowOrigin]:
    """The GGUF name and the origin of the weight that a pair changes.

    Raises AdapterError for an unknown name, UnsupportedError if a pair cannot follow the converter.
    """
    name = f"{pair.module}{WEIGHT}"
    shape = (pair.b.shape[0], pair.a.shape[1])
    if pair.embedding:
        raise UnsupportedError(
            f"`{adapter.place}` adapts the embedding `{pair.module}`, which is not merged into a"
            " GGUF",
            hint=WHOLE,
        )
    kept = model.filter_tensors((name, lambda: None))
    if kept is None:
        raise another(adapter, checkpoint, f"it has no place for `{name}`")
    block = next((int(part) for part in kept[0].split(".") if part.isdecimal()), None)
    try:
        made = list(model.modify_tensors(probe(shape, name, 0), kept[0], block))
    except ValueError as error:  # "Can not map tensor"
        raise another(adapter, checkpoint, f"it has no place for `{name}`") from error
    stem, product = made[0] if len(made) == 1 else ("", None)
    found = (
        read_off(stem.removesuffix(WEIGHT), product, [name]) if isinstance(product, Product) else {}
    )
    origins = next(iter(found.values()), [])
    if len(found) != 1 or len(origins) != 1 or origins[0].turned or stem.partition("#")[1]:
        raise UnsupportedError(
            f"llama.cpp's converter makes of `{name}` what a pair cannot follow",
            hint=WHOLE,
        )
    return stem.removesuffix(WEIGHT), origins[0]


def in_place(pair: LoraPair, stem: str, origin: RowOrigin) -> LoraPair:
    """The pair with B's rows, A's columns and DoRA's magnitudes in the GGUF's order."""

    def held(role: str, tensor: Tensor) -> InMemory:
        values = read_tensor(tensor).float()
        values = values[:, origin.columns] if role == A else values[origin.rows]
        return InMemory(f"{PREFIX}{stem}.{role}", values.contiguous())

    extras: dict[str, Tensor] = {role: held(role, tensor) for role, tensor in pair.extras.items()}
    a, b = held(A, pair.a), held(B, pair.b)
    return replace(pair, module=stem, a=a, b=b, extras=extras)
