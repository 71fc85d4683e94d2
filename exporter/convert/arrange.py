"""Rearranges tensors into the form that llama.cpp's converter expects.

The converter's class undoes or continues these steps. They also work on the products of --to lora,
because they only cut, join, transpose and scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from exporter.convert.upstream_fixes import head_size, rotated

Arrange = Callable[[str, Any], Any]
"""(tensor name, tensor) -> the tensor that the converter gets."""
SCALING_SWITCHES = {"t5": "scale_decoder_outputs", "umt5": "tie_word_embeddings"}
"""Model type -> the setting by which transformers scales with d_model ** -0.5."""
OUTPUT_SCALED = "decant.output_scaled"
"""GGUF key: whether the last norm contains that factor, which llama.cpp leaves out."""
EMBEDDING = "embed_tokens.weight"
STACKED = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")
LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62, "gemma3_text": 62}
"""Layers of the 27B models, whose queries llama.cpp scales differently (gemma2.cpp, gemma3.cpp)."""
FUSED = re.compile(r"\bh\.(?P<layer>\d+)\.attn\.c_attn\.")
"""Queries, keys and values in one fused weight."""
FUSED_KINDS = ("gpt2", "gpt_bigcode")
BARE_TOWER = re.compile(
    r"(?P<tower>\bvision_tower\.)(?=(embeddings|encoder|head|post_layernorm|pre_layrnorm)\.)"
)
TOWERS = ("clip_vision_model", "siglip_vision_model", "siglip2_vision_model")


KIMI_DENSE = re.compile(r"\bblock_sparse_moe\.(?=(gate|up|down)_proj\.)")


def published_name(name: str, hparams: Mapping[str, Any]) -> str:
    """The converter's name of a tensor: its name in published checkpoints.

    transformers 5 saves some under other names: CLIP's and SigLIP's encoders without
    `vision_model`, Kimi-Linear's dense layers as if they had experts.
    """
    if hparams.get("model_type") == "kimi_linear":
        return KIMI_DENSE.sub("mlp.", name)
    vision = hparams.get("vision_config")
    if isinstance(vision, dict) and vision.get("model_type") in TOWERS:
        return BARE_TOWER.sub(r"\g<tower>vision_model.", name)
    return name


def breaking_embedding(name: str, hparams: Mapping[str, Any]) -> str | None:
    """The name under which Pixtral's projector finds the embedding; None for other tensors.

    The projector puts the token [IMG_BREAK] between lines of a picture, and needs its row. The
    converter's class takes that row (llava.py, modify_tensors), but under the published name its
    parent class drops it with the language model.
    """
    vision = hparams.get("vision_config")
    is_pixtral = isinstance(vision, dict) and vision.get("model_type") == "pixtral"
    return EMBEDDING if is_pixtral and name.endswith(EMBEDDING) else None


def arranger(hparams: Mapping[str, Any]) -> Arrange:
    """The rearrangement of this model's tensors. hparams: of the whole model, patched."""
    text = hparams.get("text_config")
    part = dict(text) if isinstance(text, dict) else dict(hparams)
    kind = str(part.get("model_type"))
    choices = (
        (kind.startswith(("qwen3_vl_moe", "qwen3_omni_moe")), experts_turned),
        (scales_output(hparams), output_scaled),
        (kind == "gemma2", queries_scaled),
        (kind.startswith("gemma3") and kind in LARGEST_GEMMA, query_norms_scaled),
        (kind in FUSED_KINDS, fused_queries_scaled),
        (kind == "afmoe", embedding_reduced),
        (kind == "bamba", heads_halved),
    )
    chosen = next((arrange for is_so, arrange in choices if is_so), None)
    if chosen is None:
        return lambda _, tensor: tensor
    return lambda name, tensor: chosen(name, tensor, part)


def scales_output(hparams: Mapping[str, Any]) -> bool:
    """Whether the decoder's output is scaled before a tied head, as in T5."""
    kind = str(hparams.get("model_type"))
    return bool(hparams.get(SCALING_SWITCHES.get(kind, "")))


def experts_turned(name: str, tensor: Any, part: Mapping[str, Any]) -> Any:
    """Transpose stacked experts to Qwen3-VL's published layout: inputs first.

    transformers 5 saves them outputs first, like all other types: gate_up_proj as (experts, 2 *
    width, hidden), down_proj as (experts, hidden, width).
    """
    if not name.removesuffix(".weight").endswith(STACKED):
        return tensor
    hidden, width = part["hidden_size"], part["moe_intermediate_size"]
    gate = ".gate_up_proj" in name
    saved = (2 * width, hidden) if gate else (hidden, width)
    return tensor.permute(0, 2, 1) if tuple(tensor.shape[1:]) == saved else tensor


def heads_halved(name: str, tensor: Any, part: Mapping[str, Any]) -> Any:
    """Reorder Bamba's queries and keys, in which only the first values of each head rotate.

    tensor: (heads * size, n_in). The converter interleaves the two halves of a whole head. The new
    order puts the two halves of the rotated part first and interleaved; the order of the rest is
    free, since queries and keys share it.
    """
    is_turned = name.endswith((".self_attn.q_proj.weight", ".self_attn.k_proj.weight"))
    size = head_size(part)
    if not is_turned or rotated(part) >= size:
        return tensor
    turns = rotated(part) // 2  # rotated pairs
    rest = size // 2 - turns
    heads = tensor.reshape(-1, size, tensor.shape[-1])
    first, second, third, fourth = heads.split([turns, turns, rest, rest], 1)
    return joined([first, third, second, fourth]).reshape(*tensor.shape)


def query_factor(part: Mapping[str, Any]) -> float:
    """The factor for a Gemma's queries.

    transformers divides them by the root of query_pre_attn_scalar, llama.cpp by the root of the
    head's size, except for the 27B models.
    """
    heads = part["hidden_size"] // part["num_attention_heads"]
    is_largest = part["num_hidden_layers"] == LARGEST_GEMMA[str(part["model_type"])]
    divided = heads if is_largest else head_size(part)
    return math.sqrt(divided / (part.get("query_pre_attn_scalar") or divided))


def queries_scaled(name: str, tensor: Any, part: Mapping[str, Any]) -> Any:
    """Scale Gemma 2's projection of queries, (n_out, n_in)."""
    if not name.endswith(".self_attn.q_proj.weight") or (factor := query_factor(part)) == 1.0:
        return tensor
    return tensor * factor


def query_norms_scaled(name: str, tensor: Any, part: Mapping[str, Any]) -> Any:
    """Scale Gemma 3's norm of queries, (head size,), which multiplies by 1 + weight."""
    if not name.endswith(".self_attn.q_norm.weight") or (factor := query_factor(part)) == 1.0:
        return tensor
    return (tensor.float() + 1) * factor - 1


def fused_queries_scaled(name: str, tensor: Any, part: Mapping[str, Any]) -> Any:
    """Scale fused queries by the ratio of transformers' factor to llama.cpp's 1 / sqrt(head size).

    tensor: a weight or bias of queries, keys and values in one; (n_in, n_out) in GPT-2, (n_out,
    n_in) in others.
    """
    found = FUSED.search(name)
    factor = fused_factor(part, int(found["layer"])) if found else 1.0
    if factor == 1.0:
        return tensor
    is_turned = part["model_type"] == "gpt2" and name.endswith(".weight")
    dim, count = int(is_turned), width(part)
    queries, rest = tensor.split([count, tensor.shape[dim] - count], dim)
    return joined([queries * factor, rest], dim)


def fused_factor(part: Mapping[str, Any], layer: int) -> float:
    """The factor for the queries of a layer."""
    size = width(part) / (part.get("n_head") or part["num_attention_heads"])
    factor = 1.0 if part.get("scale_attn_weights", True) else math.sqrt(size)
    by_layer = part["model_type"] == "gpt2" and part.get("scale_attn_by_inverse_layer_idx")
    return factor / (layer + 1) if by_layer else factor


def width(part: Mapping[str, Any]) -> int:
    """Values per token."""
    return int(part.get("n_embd") or part["hidden_size"])


def embedding_reduced(name: str, tensor: Any, part: Mapping[str, Any]) -> Any:
    """Divide AfMoE's embedding by the factor that llama.cpp always applies, where the model has
    none.

    An embedding that is also the head cannot be divided.
    """
    stays = part.get("mup_enabled") or part.get("tie_word_embeddings")
    if stays or name != "model.embed_tokens.weight":
        return tensor
    return tensor * width(part) ** -0.5


def output_scaled(name: str, tensor: Any, part: Mapping[str, Any]) -> Any:
    """Multiply T5's factor for tied embeddings into the decoder's last norm.

    transformers multiplies this norm's output by d_model ** -0.5; llama.cpp does not.
    """
    if name != "decoder.final_layer_norm.weight":
        return tensor
    return tensor * part["d_model"] ** -0.5


def joined(parts: list[Any], dim: int = 1) -> Any:
    import torch

    return torch.cat(parts, dim)
