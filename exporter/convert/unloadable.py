"""Refuses models that llama.cpp's converter writes and llama.cpp cannot load.

The limits come from its graphs (src/models/*.cpp). Limits that are missing here show up when the
written file is loaded to verify it.
"""

from __future__ import annotations

from exporter.convert.ignored_settings import Converted
from exporter.convert.refusals import OTHER_FORMAT
from exporter.core.errors import UnsupportedError

COMMAND_R_LAYERS = 64  # command-r.cpp: if (n_layer >= 64) { layer.attn_q_norm = … }
LAUREL_RANK = 64  # gemma3n.cpp
EXPANSION = 2  # GGML_ASSERT(2 * n_embd == d_inner)
INDEXED = ("deepseek32", "deepseek4", "dots3note", "glm-dsa")
LEAST_INDEX = 64  # build_input_k_rot in llama-kv-cache.cpp: the smallest matrix that rotates a head
EXPANDING = ("granitehybrid", "jamba", "mamba")


def refuse_unloadable(made: Converted) -> None:
    """Raise UnsupportedError for a model that llama.cpp refuses, or crashes on, when loading."""
    if what := limit(made):
        raise UnsupportedError(f"llama.cpp cannot load this model: {what}", hint=OTHER_FORMAT)


def limit(made: Converted) -> str:
    """The limit of llama.cpp's graph that this model exceeds; empty without one."""
    layers = made.number("num_hidden_layers")
    match made.architecture:
        case "command-r" if "blk.0.attn_q_norm.weight" in made.tensors:
            if layers < COMMAND_R_LAYERS:
                return (
                    "it has norms of queries and keys, which llama.cpp's command-r reads in models"
                    f" of {COMMAND_R_LAYERS} layers or more, and this one has {layers}"
                )
        case "starcoder" if made.settings.get("multi_query") is False:
            return (
                "each of its heads has separate keys and values (multi_query is false), and"
                " llama.cpp's starcoder has one for all"
            )
        case "gemma3n" if made.number("laurel_rank") != LAUREL_RANK:
            return (
                f"llama.cpp's gemma3n has a laurel_rank of {LAUREL_RANK}, and this model has"
                f" {made.number('laurel_rank')}"
            )
        case "kimi-linear" if made.number("linear_num_heads") != made.number("num_attention_heads"):
            return (
                "llama.cpp's kimi-linear has as many heads in its linear layers as in the others,"
                f" and this model has {made.number('linear_num_heads')} and"
                f" {made.number('num_attention_heads')}"
            )
        case _:
            return limit_of_sizes(made)
    return ""


def limit_of_sizes(made: Converted) -> str:
    """The size of some layers that llama.cpp does not support; empty without one."""
    if made.architecture in INDEXED:
        size = made.number("index_head_dim")
        if 0 < size < LEAST_INDEX or size & (size - 1):
            return (
                f"llama.cpp's {made.architecture} turns the heads of its indexer by a matrix, whose"
                f" size is a power of two from {LEAST_INDEX} on, and this model's are {size} wide"
                " (index_head_dim)"
            )
    if made.architecture in EXPANDING and (found := expansion(made)) != EXPANSION:
        return (
            f"llama.cpp's {made.architecture} expands each token {EXPANSION} times in its"
            f" state-space layers, and this model {found} times"
        )
    return ""


def expansion(made: Converted) -> float:
    """Width of the state-space layers relative to the model's."""
    hidden = made.number("hidden_size")
    inner = made.number("intermediate_size") if made.architecture == "mamba" else 0
    for name in ("mamba_expand", "expand"):
        if times := made.number(name):
            return times
    return inner / hidden if inner and hidden else EXPANSION
