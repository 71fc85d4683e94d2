"""Models that llama.cpp's converter writes and llama.cpp does not load: stopped before the work.

What its graphs take for granted of an architecture (src/models/*.cpp). Anything that is not here is
found when the written file is loaded to verify it.
"""

from __future__ import annotations

from exporter.convert.ignored_settings import Converted
from exporter.convert.refusals import OTHER_FORMAT
from exporter.core.errors import UnsupportedError

COMMAND_R_LAYERS = 64  # command-r.cpp: if (n_layer >= 64) { layer.attn_q_norm = … }
LAUREL_RANK = 64  # gemma3n.cpp
EXPANSION = 2  # GGML_ASSERT(2 * n_embd == d_inner)
INDEXED = ("deepseek32", "deepseek4", "dots3note", "glm-dsa")
LEAST_INDEX = 64  # llama-kv-cache.cpp, build_input_k_rot: the smallest matrix that turns a head
EXPANDING = ("granitehybrid", "jamba", "mamba")


def refuse_unloadable(made: Converted) -> None:
    """Raise UnsupportedError for what llama.cpp would refuse, or end itself at, when loading."""
    if what := limit(made):
        raise UnsupportedError(f"llama.cpp cannot load this model: {what}", hint=OTHER_FORMAT)


def limit(made: Converted) -> str:
    """What llama.cpp takes for granted and this model has otherwise."""
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
                "each of its heads has keys and values of its own (multi_query is false), and"
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
    """What the sizes of some layers must be."""
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
    """How many times as wide as the model its state-space layers are."""
    hidden = made.number("hidden_size")
    inner = made.number("intermediate_size") if made.architecture == "mamba" else 0
    for name in ("mamba_expand", "expand"):
        if times := made.number(name):
            return times
    return inner / hidden if inner and hidden else EXPANSION
