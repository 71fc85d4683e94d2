"""Patches a model's settings for the converter, and checks whether GGUF can hold them.

transformers 5 names some settings differently from the published config.json of the same model, and
leaves out those that its code fixes. llama.cpp's converter reads the published names.
tests/exporter/convert/test_upstream_fixes.py checks every name that this module reads against all
configs of transformers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from exporter.core.atomic_file import read_json_object
from exporter.core.errors import CheckpointError

Settings = dict[str, Any]
"""One config as a dictionary: the whole one, or a vision model's text part."""

SIGMOID_ROUTERS = (
    "afmoe", "cohere2_moe", "deepseek_v3", "deepseek_v32", "dots1", "dots3_note_text",
    "exaone_moe", "glm4_moe", "glm4_moe_lite", "glm4v_moe_text", "glm5_next_text", "glm_moe_dsa",
    "hy_v3", "hy_v4", "kimi_linear", "lfm2_moe", "llama4_text", "mimo_v2_flash", "minimax_m2",
    "minimax_m3_vl_text", "nemotron_h", "solar_open", "step3p7_text",
)  # fmt: skip
"""Model types whose experts transformers' code chooses by sigmoids, whatever the config says."""
SCORES = ("score_function", "scoring_func", "score_func", "moe_router_activation",
          "moe_router_activation_func", "expert_selection_fn")  # fmt: skip
"""The converter's names of the method that chooses experts."""
CONSTANTS: Mapping[str, Settings] = {
    "afmoe": {"route_norm": True},  # AfmoeTokenChoiceRouter always divides by the sum
    "bloom": {"seq_length": 2048},  # ALiBi has no limit: BLOOM's training length
    "cohere2": {"rotary_pct": 1.0},
    "deepseek_v2": {"scoring_func": "softmax"},
    "glm5_next_text": {"mla_use_nope": True},
    "hy_v3": {"route_norm": True},
    "mimo_v2_flash": {"topk_method": "noaux_tc"},
    "mt5": {"n_positions": 512},  # T5's distances have no limit: the converter's assumption
    "t5": {"n_positions": 512},
    "umt5": {"n_positions": 512},
}
"""Settings that transformers' code fixes for a model type and its config no longer contains."""
RENAMED: Mapping[str, Mapping[str, str]] = {
    "glm": {
        "seq_length": "max_position_embeddings",
        "layernorm_epsilon": "rms_norm_eps",
        "attention_dim": "head_dim",
    },
    "gpt2": {"n_ctx": "n_positions"},
    "mimo_v2_flash": {"layernorm_epsilon": "rms_norm_eps"},
    "modernbert": {"layer_norm_eps": "norm_eps"},
}
"""Model type -> {the converter's name of a setting: transformers' name}."""
MROPE_SECTIONS = {
    "glm4v_moe_text": [8, 12, 12], "glm4v_text": [8, 12, 12], "glm_ocr_text": [8, 12, 12],
    "paddleocr_vl_text": [16, 24, 24], "qwen2_5_omni_text": [16, 24, 24],
    "qwen2_5_vl_text": [16, 24, 24], "qwen2_vl_text": [16, 24, 24],
    "qwen3_asr": [24, 20, 20], "qwen3_omni_moe_text": [24, 20, 20],
    "qwen3_vl_moe_text": [24, 20, 20], "qwen3_vl_text": [24, 20, 20],
}  # fmt: skip
"""Model type -> the parts of a head that rotate with a picture's time, height and width, if the
config does not say.
"""
FEED_FORWARD = {"falcon": "ffn_hidden_size", "gpt2": "n_inner", "gpt_bigcode": "n_inner"}
"""Model type -> the setting with the width of the feed-forward layers."""
OLD_LAYER_TYPES = {"linear_attention": "mamba", "full_attention": "attention"}
NEMOTRON_LAYERS = {"linear_attention": "M", "mamba": "M", "full_attention": "*", "attention": "*",
                   "moe": "E", "mlp": "-"}  # fmt: skip


def patch_settings(hparams: Settings, folder: Path) -> Settings:
    """Add in place the settings that the converter reads and transformers 5 no longer writes.

    folder: the config's. A value in the config is never changed.
    """
    text = hparams.get("text_config")
    part = text if isinstance(text, dict) else hparams
    kind = str(part.get("model_type"))
    if kind in SIGMOID_ROUTERS and not any(part.get(name) for name in SCORES):
        give(part, scoring_func="sigmoid")
    give(part, **CONSTANTS.get(kind, {}))
    for name, new_name in RENAMED.get(kind, {}).items():
        give(part, **{name: part.get(new_name)})
    if kind in DERIVED:
        DERIVED[kind](part)
    sections = MROPE_SECTIONS.get(kind) or MROPE_SECTIONS.get(str(hparams.get("model_type")))
    if sections:
        part["rope_parameters"] = {"mrope_section": list(sections)} | rope(part)
    leading_dense_layers(part)
    if kind == "falcon" and hparams.get("multi_query"):
        written = read_json_object(folder / "config.json", error=CheckpointError, hint="")
        # all heads share one key and value; transformers fills in another layout's number
        if not hparams.get("new_decoder_architecture"):
            hparams["num_kv_heads"] = written.get("n_head_kv", 1)
    return hparams


def give(part: Settings, **values: Any) -> None:
    """Set values that are missing or None."""
    for name, value in values.items():
        if part.get(name) is None and value is not None:
            part[name] = value


def rope(part: Mapping[str, Any]) -> Settings:
    """The parameters of rotary positions: a single set, never one per layer type."""
    found = part.get("rope_parameters")
    return found if isinstance(found, dict) else {}


def head_size(part: Mapping[str, Any]) -> int:
    """Width of one head: from the config, or the model's width divided by the heads."""
    return int(part.get("head_dim") or part["hidden_size"] // part["num_attention_heads"])


def rotated(part: Mapping[str, Any]) -> int:
    """Number of a head's values that rotate with the position."""
    return int(head_size(part) * rope(part).get("partial_rotary_factor", 1.0))


def leading_dense_layers(part: Settings) -> None:
    """Count the dense layers before the first one with experts, if the config lists the layers."""
    kinds = part.get("mlp_layer_types")
    if isinstance(kinds, list) and "sparse" in kinds:
        give(part, first_k_dense_replace=kinds.index("sparse"))


def bamba(part: Settings) -> None:
    """Set that half of a head rotates, which transformers' class fixes."""
    part["attn_rotary_emb"] = rotated(part)


def dbrx(part: Settings) -> None:
    give(part["attn_config"], rope_theta=rope(part).get("rope_theta", 10000.0))


def deepseek_v4(part: Settings) -> None:
    """List the layers' compression rates, as the published config does."""
    rates = part.get("compress_rates") or {}
    types = part.get("layer_types") or []
    hashed = [kind for kind in part.get("mlp_layer_types") or [] if kind == "hash_moe"]
    give(
        part,
        compress_ratios=[rates.get(kind, 0) for kind in types],
        num_hash_layers=len(hashed),
    )


def eurobert(part: Settings) -> None:
    """Remove a classifier's pooling: the converter does not know "late".

    Only a classification head uses it, and the converter has none for EuroBERT.
    """
    if part.get("classifier_pooling") == "late":
        part.pop("classifier_pooling")


def falcon_h1(part: Settings) -> None:
    give(part, head_dim=head_size(part))


def gemma4_unified(part: Settings) -> None:
    """Add an empty width of experts if there are none: the converter reads it in any case."""
    part.setdefault("moe_intermediate_size", None)


def glm(part: Settings) -> None:
    """Set the base of the rotary angles as a multiple of 10,000."""
    give(part, rope_ratio=rope(part).get("rope_theta", 10000.0) / 10000.0)


def gpt_neox(part: Settings) -> None:
    give(part, rotary_pct=rope(part).get("partial_rotary_factor", 1.0))


def granite_hybrid(part: Settings) -> None:
    """Name the layer types as before transformers 5."""
    types = part.get("layer_types")
    if isinstance(types, list):
        part["layer_types"] = [OLD_LAYER_TYPES.get(kind, kind) for kind in types]


def hrm_text(part: Settings) -> None:
    """Set that each head has separate keys and values: the config has no other number."""
    part["num_key_value_heads"] = part["num_attention_heads"]


def hunyuan_moe(part: Settings) -> None:
    """List the experts' settings per layer, as the published config does."""
    layers = part["num_hidden_layers"]
    give(part, moe_intermediate_size=part["intermediate_size"], num_shared_expert=1)
    for name in ("moe_intermediate_size", "num_shared_expert", "moe_topk"):
        if not isinstance(part[name], list):
            part[name] = [part[name]] * layers


def linear_attention(part: Settings) -> None:
    """Collect Kimi's and GLM's settings of linear attention in a table, as published configs do."""
    types = part.get("layer_types") or []
    full = [number for number, kind in enumerate(types, 1) if kind != "linear_attention"]
    table = {
        "head_dim": part.get("linear_head_dim"),
        "num_heads": part.get("linear_num_heads"),
        "short_conv_kernel_size": part.get("linear_conv_kernel_dim"),
        "gate_lower_bound": part.get("linear_lower_bound"),
        "full_attn_layers": full,
        "kda_layers": [number for number in range(1, len(types) + 1) if number not in full],
    }
    give(part, linear_attn_config={name: it for name, it in table.items() if it is not None})


def mimo_v2(part: Settings) -> None:
    """List the layers with a window; transformers gives them twice the heads of keys and values."""
    types = part.get("layer_types") or []
    give(
        part,
        hybrid_layer_pattern=[int(kind == "sliding_attention") for kind in types],
        swa_head_dim=part["head_dim"],
        swa_v_head_dim=part["v_head_dim"],
    )
    part["swa_num_attention_heads"] = part["num_attention_heads"]
    part["swa_num_key_value_heads"] = 2 * part["num_key_value_heads"]
    factor = (rope(part).get("full_attention") or {}).get("partial_rotary_factor")
    if factor is not None:
        give(rope(part), partial_rotary_factor=factor)


def minimax_m2(part: Settings) -> None:
    give(part, rotary_dim=rotated(part))


def minimax_m3(part: Settings) -> None:
    """Collect the settings of sparse attention in a table, and mark the layers with experts."""
    sparse = {
        "sparse_num_index_heads": "index_n_heads", "sparse_index_dim": "index_head_dim",
        "sparse_topk_blocks": "index_topk_blocks", "sparse_block_size": "index_block_size",
        "sparse_local_block": "index_local_blocks",
    }  # fmt: skip
    kinds = part.get("mlp_layer_types") or ["sparse"] * part["num_hidden_layers"]
    give(
        part,
        n_shared_experts=part["shared_intermediate_size"] // part["intermediate_size"],
        sparse_attention_config={old: part.get(name) for old, name in sparse.items()},
        moe_layer_freq=[int(kind == "sparse") for kind in kinds],
    )


def nemotron_h(part: Settings) -> None:
    """Write the layers as a pattern of letters; remove settings of experts if there are none.

    The converter recognizes experts by `num_experts_per_tok`, which transformers writes for all.
    """
    types = part.get("layers_block_type") or part.get("layer_types")
    if isinstance(types, list) and all(kind in NEMOTRON_LAYERS for kind in types):
        give(part, hybrid_override_pattern="".join(NEMOTRON_LAYERS[kind] for kind in types))
    pattern = part.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        part["num_hidden_layers"] = len(pattern)
        if "E" not in pattern:
            for name in ("num_experts_per_tok", "n_routed_experts", "n_group", "topk_group"):
                part.pop(name, None)


def phimoe(part: Settings) -> None:
    """Set the training's context, unless the config has one for stretched rotary positions."""
    part["rope_parameters"] = {
        "original_max_position_embeddings": part["max_position_embeddings"]
    } | rope(part)


def whole_heads(part: Settings) -> None:
    """Set that the whole head rotates: the converter assumes half by default."""
    part["rope_parameters"] = {"partial_rotary_factor": 1.0} | rope(part)


def t5(part: Settings) -> None:
    """Set that the decoder begins with the padding token, transformers' default."""
    give(part, decoder_start_token_id=part.get("pad_token_id", 0))


DERIVED: Mapping[str, Callable[[Settings], None]] = {
    "bamba": bamba, "dbrx": dbrx, "deepseek_v4": deepseek_v4, "eurobert": eurobert,
    "falcon_h1": falcon_h1, "gemma4_unified_text": gemma4_unified,
    "gemma4_unified_assistant": gemma4_unified, "glm": glm, "glm4v_text": whole_heads,
    "glm_ocr_text": whole_heads,
    "glm5_next_text": linear_attention, "gpt_neox": gpt_neox, "granitemoehybrid": granite_hybrid,
    "hrm_text": hrm_text, "hunyuan_v1_moe": hunyuan_moe, "kimi_linear": linear_attention,
    "mimo_v2_flash": mimo_v2, "minimax_m2": minimax_m2, "minimax_m3_vl_text": minimax_m3,
    "mt5": t5, "nemotron_h": nemotron_h, "phimoe": phimoe, "solar_open": whole_heads, "t5": t5,
    "umt5": t5,
}  # fmt: skip
"""Model type -> the function that derives settings from several others."""


def write_positions(writer: Any, hparams: Mapping[str, Any]) -> None:
    """Write whether a Granite 4 has rotary positions.

    llama.cpp's graphs of Granite read it from a key about scaling; the converter derives it from
    whether the model is a hybrid. writer: the GGUFWriter; hparams: the text model's.
    """
    if hparams.get("model_type") == "granitemoehybrid":
        writer.remove_key(f"{writer.arch}.rope.scaling.finetuned")
        writer.add_rope_scaling_finetuned(hparams.get("position_embedding_type") == "rope")


def write_feed_forward(writer: Any, hparams: Mapping[str, Any]) -> None:
    """Write the width of feed-forward layers for which the converter assumes four times the
    model's.

    writer: the GGUFWriter; hparams: the text model's.
    """
    name = FEED_FORWARD.get(str(hparams.get("model_type")), "")
    if hparams.get(name) is not None:
        writer.remove_key(f"{writer.arch}.feed_forward_length")
        writer.add_feed_forward_length(hparams[name])


def settle_pictures(model: Any, hparams: Mapping[str, Any]) -> None:
    """Set the number of tokens per picture from the config.

    For Gemma 3 the converter reads it from the processor's settings, and defaults to 256. model:
    the converter's, of a projector or another; hparams: of the whole model.
    """
    tokens = hparams.get("mm_tokens_per_image")
    if tokens is not None and hasattr(model, "preprocessor_config"):
        model.preprocessor_config["image_seq_length"] = tokens


def pack_settings(writer: Any) -> None:
    """Pack every single setting into bytes once, as writing the header does later.

    The converter accepts any value of config.json; only packing shows that it is not a number.
    Raises ValueError for one.
    """
    for key, value in writer.kv_data[0].items():
        if value.type.name != "ARRAY":
            try:
                writer._pack_val(value.value, value.type, add_vtype=True)  # noqa: SLF001
            except struct.error as error:
                raise ValueError(f"{value.value!r} is not what {key} can be: {error}") from error
