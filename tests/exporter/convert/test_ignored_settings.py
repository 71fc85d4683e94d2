"""Settings that llama.cpp does not know: which are warned of, and which are not."""

from __future__ import annotations

from typing import Any

import pytest

from exporter.convert.ignored_settings import Converted, ignored_settings
from exporter.convert.unloadable import limit

WINDOW = {"sliding_window": 4096, "max_position_embeddings": 32768}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
LLAMA4 = {"layer_types": ["chunked_attention"], "attention_chunk_size": 8192}
LONG = {"original_max_position_embeddings": 4096, "max_position_embeddings": 131072}
NORMED = {"mamba_rms_norm": True, "mamba_norm_before_gate": True}
TWO_BASES = {
    "layer_types": SLIDING["layer_types"],
    "rope_parameters": {
        "full_attention": {"rope_theta": 5e5}, "sliding_attention": {"rope_theta": 1e4}
    },
}  # fmt: skip


def made(architecture: str, settings: dict[str, Any], tensors: tuple[str, ...] = ()) -> Converted:
    keys = {"attention.sliding_window"} if architecture in ("phi3", "granite_swa") else set()
    return Converted(architecture, settings, keys, set(tensors))


WARNED = [
    ("llama", WINDOW, (), "a window of 4,096 tokens: beyond 4,096 tokens answers differ"),
    ("llama", WINDOW | SLIDING, (), "a window of 4,096 tokens"),
    ("phi3", WINDOW, (), "a window of 4,096 tokens"),
    ("llama4", LLAMA4 | {"attention_chunk_size": 4096}, (), "beyond 4,096 tokens"),
    ("llama4", {"attn_temperature_tuning": False}, (), "in long conversations"),
    ("qwen2moe", {"norm_topk_prob": True}, (), "does not divide the shares"),
    ("qwen3moe", {"norm_topk_prob": False}, (), "norm_topk_prob is false"),
    ("phimoe", {}, (), "weighs each by itself"),
    ("deepseek2", {"topk_method": "group_limited_greedy", "n_group": 8}, (), "groups of experts"),
    ("llama", {"hidden_act": "gelu"}, (), "computes SiLU"),
    ("gpt2", {"activation_function": "relu"}, (), "computes GELU"),
    ("starcoder2", {"hidden_act": "silu"}, (), "computes GELU"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic"}}, (), "of the type dynamic"),
    ("qwen3", {"rope_parameters": {"rope_type": "llama3"}}, (), "of the type llama3"),
    ("phi3", LONG, ("rope_factors_long.weight",), "above 4,096 tokens"),
    ("smollm3", {"no_rope_layers": [0, 1, 1, 1]}, (), "every 4th layer"),
    ("afmoe", SLIDING, (), "every 4th layer"),
    ("t5", {"relative_attention_max_distance": 256}, (), "goes to 256"),
    ("afmoe", {"mup_enabled": False, "tie_word_embeddings": True}, (), "mup_enabled is false"),
    ("falcon-h1", NORMED, (), "mamba_norm_before_gate is true"),
    ("mellum", TWO_BASES, (), "one rope_theta for all layers"),
]
SILENT = [
    ("llama", {"sliding_window": None, "max_position_embeddings": 32768}, ()),
    ("llama", {"sliding_window": 32768, "max_position_embeddings": 32768}, ()),
    ("llama", WINDOW | {"layer_types": ["full_attention"] * 2}, ()),
    ("qwen2", WINDOW | {"use_sliding_window": False}, ()),
    ("gemma3", WINDOW | SLIDING, ()),
    ("granite_swa", WINDOW | SLIDING, ()),
    ("llama4", LLAMA4, ()),
    ("qwen2moe", {"norm_topk_prob": False}, ()),
    ("qwen3moe", {"norm_topk_prob": True}, ()),
    ("deepseek2", {"topk_method": "noaux_tc", "n_group": 8}, ()),
    ("llama", {"hidden_act": "silu"}, ()),
    ("gpt2", {"activation_function": "gelu_new"}, ()),
    ("gemma", {"hidden_act": "gelu", "hidden_activation": None}, ()),
    ("gemma3", {"head_dim": 128, "query_pre_attn_scalar": 256}, ()),
    ("afmoe", {"mup_enabled": False, "tie_word_embeddings": False}, ()),
    ("gemma2", {"hidden_activation": "gelu_pytorch_tanh"}, ()),
    ("llama", {"rope_parameters": {"rope_type": "llama3"}}, ("rope_freqs.weight",)),
    ("llama", {"rope_parameters": {"rope_type": "yarn"}}, ()),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 0]}, ()),
    ("t5", {"relative_attention_max_distance": 128}, ()),
    ("falcon-h1", NORMED | {"mamba_norm_before_gate": False}, ()),
]


@pytest.mark.parametrize(("architecture", "settings", "tensors", "said"), WARNED)
def test_what_a_graph_has_otherwise_is_said(architecture, settings, tensors, said):
    (warning,) = ignored_settings(made(architecture, settings, tensors))

    assert said in warning
    assert "differ from transformers'" in warning


@pytest.mark.parametrize(("architecture", "settings", "tensors"), SILENT)
def test_what_a_graph_has_as_the_model_is_not_warned_of(architecture, settings, tensors):
    assert ignored_settings(made(architecture, settings, tensors)) == []


@pytest.mark.parametrize(
    ("architecture", "settings", "said"),
    [
        ("starcoder", {"multi_query": False}, "multi_query is false"),
        ("gemma3n", {"laurel_rank": 8}, "a laurel_rank of 64, and this model has 8"),
        ("jamba", {"hidden_size": 64, "mamba_expand": 3}, "this model 3 times"),
        ("mamba", {"hidden_size": 64, "intermediate_size": 64}, "this model 1.0 times"),
        (
            "deepseek32",
            {"index_head_dim": 16},
            "a power of two from 64 on, and this model's are 16",
        ),
        ("glm-dsa", {"index_head_dim": 192}, "this model's are 192 wide (index_head_dim)"),
        ("starcoder", {"multi_query": True}, ""),
        ("gemma3n", {"laurel_rank": 64}, ""),
        ("mamba", {"hidden_size": 64, "intermediate_size": 128}, ""),
        ("granitehybrid", {"hidden_size": 64, "mamba_expand": 2}, ""),
        ("deepseek32", {"index_head_dim": 128}, ""),
    ],
)
def test_what_a_graph_takes_for_granted_is_told(architecture, settings, said):
    found = limit(made(architecture, settings))

    assert said in found
    assert bool(said) == bool(found)
