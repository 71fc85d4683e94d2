"""Warns at export of settings that llama.cpp ignores for an architecture.

The files in src/models/ build its graphs, and some of them fix a setting that varies between models
of the architecture. A GGUF of a model with another value is as right as possible; its answers still
differ from transformers'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.convert.upstream_fixes import rope
from exporter.convert.windows import RHYTHMS, WINDOWED

DIFFER = "answers differ from transformers'"
# norm_w in the call of build_moe_ffn in src/models/NAME.cpp
DIVIDES = {
    "hunyuan-moe": True, "kimi-linear": True, "lfm2moe": True, "mellum": True, "mimo2": True,
    "minimax-m2": True, "qwen35moe": True, "qwen3moe": True, "qwen3next": True,
    "qwen3vlmoe": True, "qwen4exp": True,
    "deepseek": False, "olmoe": False, "qwen2moe": False,
}  # fmt: skip
"""Architecture -> whether the weights of the chosen experts are divided by their sum."""
# LLM_FFN_SILU in that call
SILU = (
    "afmoe", "cohere2", "command-r", "deepseek2", "dots1", "ernie4_5", "exaone4", "glm4", "glm4moe",
    "granite", "granitemoe", "hunyuan-dense", "jamba", "lfm2", "llama", "mistral3", "olmo", "olmo2",
    "olmoe", "phi3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "seed_oss", "smollm3", "stablelm",
)  # fmt: skip
"""Architectures whose feed-forward layers have one activation."""
# LLM_FFN_GELU in that call
GELU = (
    "falcon", "gemma", "gemma2", "gemma3", "gptneox", "gpt2", "phi2", "starcoder", "starcoder2",
)  # fmt: skip
KINDS_OF_SILU = ("silu", "swish")
KINDS_OF_GELU = ("gelu", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh")
"""They differ by less than the error of ggml's table."""
ACTIVATIONS = ("hidden_activation", "hidden_act", "activation_function", "activation")
IN_LINE = {"afmoe": 4, "smollm3": 4, "llama4": 4}
"""Architecture -> n, if every nth layer has no rotary positions (n_no_rope_layer_step)."""
LLAMA4_CHUNK = 8192  # llama4.cpp: n_swa
LLAMA4_TEMPERATURE = {"attn_temperature_tuning": True, "floor_scale": 8192, "attn_scale": 0.1}
T5_DISTANCE = 128  # llama-graph.cpp: llama_relative_position_bucket


@dataclass(frozen=True, slots=True)
class Converted:
    """The converter's result and its inputs."""

    architecture: str
    """The architecture, in llama.cpp's spelling."""
    settings: Mapping[str, Any]
    """The text model's settings as the converter read them."""
    keys: Collection[str]
    """The GGUF's keys, without the architecture prefix."""
    tensors: Collection[str]

    def number(self, name: str) -> int:
        """A numeric setting; 0 if it is missing."""
        value = self.settings.get(name)
        return int(value) if isinstance(value, int | float) else 0


def ignored_settings(made: Converted) -> list[str]:
    """A warning for each setting that the model's graph in llama.cpp does not follow."""
    found = (check(made) for check in CHECKS)
    return [warning for warning in found if warning]


def window(made: Converted) -> str:
    types, size = made.settings.get("layer_types"), made.number("sliding_window")
    has_window = any(kind in WINDOWED for kind in types) if isinstance(types, list) else size > 0
    off = made.settings.get("use_sliding_window") is False and not isinstance(types, list)
    known = made.architecture in RHYTHMS or (
        "attention.sliding_window" in made.keys and made.architecture != "phi3"
    )
    context = made.number("max_position_embeddings")
    if not has_window or off or known or not 0 < size < (context or math.inf):
        return ""
    return (
        f"llama.cpp's {made.architecture} attends to the whole context where this model has a"
        f" window of {size:,} tokens: beyond {size:,} tokens {DIFFER}"
    )


def chunks(made: Converted) -> str:
    size = made.number("attention_chunk_size")
    types = made.settings.get("layer_types") or []
    if made.architecture != "llama4" or "chunked_attention" not in types or size == LLAMA4_CHUNK:
        return ""
    return (
        f"llama.cpp's llama4 attends within chunks of {LLAMA4_CHUNK:,} tokens where this model has"
        f" chunks of {size:,}: beyond {min(size, LLAMA4_CHUNK):,} tokens {DIFFER}"
    )


def temperature(made: Converted) -> str:
    temperatures = {
        name: made.settings.get(name, value) for name, value in LLAMA4_TEMPERATURE.items()
    }
    if made.architecture != "llama4" or temperatures == LLAMA4_TEMPERATURE:
        return ""
    return (
        "llama.cpp's llama4 scales the attention of distant tokens as the published models do"
        f" (from {LLAMA4_CHUNK:,} tokens on, by 0.1), and this model does it otherwise: in long"
        f" conversations {DIFFER}"
    )


def expert_shares(made: Converted) -> str:
    divides, normalizes = DIVIDES.get(made.architecture), made.settings.get("norm_topk_prob")
    if divides is None or not isinstance(normalizes, bool) or normalizes == divides:
        return ""
    does, has = ("divides", "not") if divides else ("does not divide", "so")
    return (
        f"llama.cpp's {made.architecture} {does} the shares of the chosen experts by their sum,"
        f" and this model has it {has} (norm_topk_prob is {str(normalizes).lower()}): {DIFFER}"
    )


def sparse_mixer(made: Converted) -> str:
    if made.architecture != "phimoe":
        return ""
    return (
        "llama.cpp's phimoe divides the shares of the two chosen experts by their sum, and this"
        f" model weighs each by itself (sparsemixer): {DIFFER}"
    )


def expert_groups(made: Converted) -> str:
    if made.settings.get("topk_method") != "group_limited_greedy" or made.number("n_group") <= 1:
        return ""
    return (
        "llama.cpp ranks groups of experts by their two best where this model takes the best"
        f" alone (group_limited_greedy): {DIFFER}, mostly a little"
    )


def activation(made: Converted) -> str:
    activations = (made.settings.get(name) for name in ACTIVATIONS)
    activation_name = next((name for name in activations if isinstance(name, str)), None)
    has = "SiLU" if made.architecture in SILU else "GELU"
    alike = KINDS_OF_GELU if has == "GELU" else KINDS_OF_SILU
    if activation_name is None or activation_name in alike or made.architecture not in SILU + GELU:
        return ""
    return (
        f"llama.cpp's {made.architecture} computes {has} in its feed-forward layers where this"
        f" model has {activation_name}: {DIFFER}"
    )


def rope_scaling(made: Converted) -> str:
    parameters = rope(made.settings)
    kind = str((parameters.get("full_attention") or parameters).get("rope_type"))
    factors = any(name.startswith("rope_f") for name in made.tensors)
    if (kind in ("llama3", "longrope", "su") and not factors) or (
        kind == "dynamic" and made.architecture not in ("hunyuan-dense", "hunyuan-moe")
    ):
        return (
            f"llama.cpp's converter has no rotary positions of the type {kind} for"
            f" {made.architecture}, and leaves out their scaling: in long conversations {DIFFER}"
        )
    return ""


def rope_factors(made: Converted) -> str:
    trained, longest = made.number("original_max_position_embeddings"), 0
    parameters = rope(made.settings)
    trained = int(parameters.get("original_max_position_embeddings") or trained)
    longest = made.number("max_position_embeddings")
    if "rope_factors_long.weight" not in made.tensors or not 0 < trained < longest:
        return ""
    return (
        "llama.cpp takes LongRoPE's factors by the size of the context, transformers by the"
        f" length of the text: with a context above {trained:,} tokens (-c) short texts {DIFFER},"
        " a little"
    )


def rotated_layers(made: Converted) -> str:
    period, uses_rope = IN_LINE.get(made.architecture), made.settings.get("no_rope_layers")
    if made.architecture == "afmoe":  # where layers have positions if they have a window
        uses_rope = [int(kind in WINDOWED) for kind in made.settings.get("layer_types") or []]
    if period is None or not isinstance(uses_rope, list):
        return ""
    if uses_rope == [int((number + 1) % period != 0) for number in range(len(uses_rope))]:
        return ""
    return (
        f"llama.cpp's {made.architecture} leaves out the rotary positions of every"
        f" {period}th layer, and this model has it otherwise (no_rope_layers or layer_types):"
        f" {DIFFER}"
    )


def distances(made: Converted) -> str:
    distance = made.number("relative_attention_max_distance")
    if not made.architecture.startswith("t5") or distance in (0, T5_DISTANCE):
        return ""
    return (
        f"llama.cpp's {made.architecture} tells distances up to {T5_DISTANCE} tokens apart where"
        f" this model goes to {distance} (relative_attention_max_distance): {DIFFER}"
    )


def scaled_embedding(made: Converted) -> str:
    is_tied = made.settings.get("tie_word_embeddings")  # otherwise arrange.py has divided it
    if made.architecture != "afmoe" or made.settings.get("mup_enabled") or not is_tied:
        return ""
    return (
        "llama.cpp's afmoe multiplies embeddings by the root of their size, and this model does"
        f" not (mup_enabled is false), whose head is the embedding: {DIFFER}"
    )


def gated_norm(made: Converted) -> str:
    has = made.settings.get("mamba_rms_norm") and made.settings.get("mamba_norm_before_gate")
    if made.architecture != "falcon-h1" or not has:
        return ""
    return (
        "llama.cpp's falcon-h1 norms a state-space layer's output after its gate, and this model"
        f" before (mamba_norm_before_gate is true): {DIFFER}"
    )


def rope_bases(made: Converted) -> str:
    parameters, types = rope(made.settings), made.settings.get("layer_types") or []
    full, sliding = (parameters.get(kind) or {} for kind in ("full_attention", "sliding_attention"))
    windowed = bool(types) and types[0] in WINDOWED
    if made.architecture == "mellum" and any(kind in WINDOWED for kind in types):
        differs = "rope_theta"
    elif made.architecture == "laguna" and windowed:
        differs = "partial_rotary_factor"
    else:
        return ""
    if full.get(differs) == sliding.get(differs):
        return ""
    return (
        f"llama.cpp's {made.architecture} has one {differs} for all layers, and this model has"
        f" {full.get(differs)} and, with a window, {sliding.get(differs)}: {DIFFER}"
    )


CHECKS: tuple[Callable[[Converted], str], ...] = (
    window, chunks, temperature, expert_shares, sparse_mixer, expert_groups, activation,
    rope_scaling, rope_factors, rotated_layers, distances, scaled_embedding, gated_norm, rope_bases,
)  # fmt: skip
