"""Tensors in the form in which llama.cpp's converter expects them, where a checkpoint has another.

The converter's class undoes or continues what this module does. The same works on the products
of --to lora, because it only cuts, joins, transposes and scales.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from exporter.convert.upstream_fixes import head_size, rotated

Arrange = Callable[[str, Any], Any]
"""From a tensor's name and the tensor to what the converter is given."""
SCALING_SWITCHES = {"t5": "scale_decoder_outputs", "umt5": "tie_word_embeddings"}
"""By model type: the setting by which transformers scales with d_model ** -0.5."""
OUTPUT_SCALED = "decant.output_scaled"
"""The key of a GGUF whose last norm holds that factor, which llama.cpp leaves out."""
EMBEDDING = "embed_tokens.weight"
STACKED = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")
GEMMA2_27B = 46
"""Layers of the Gemma 2 whose queries llama.cpp divides otherwise (gemma2.cpp)."""
BARE_TOWER = re.compile(
    r"(?P<tower>\bvision_tower\.)(?=(embeddings|encoder|head|post_layernorm|pre_layrnorm)\.)"
)
TOWERS = ("clip_vision_model", "siglip_vision_model", "siglip2_vision_model")


KIMI_DENSE = re.compile(r"\bblock_sparse_moe\.(?=(gate|up|down)_proj\.)")


def published_name(name: str, hparams: Mapping[str, Any]) -> str:
    """What the converter calls a tensor: its name in published checkpoints.

    transformers 5 saves some under others: CLIP's and SigLIP's encoders without `vision_model`,
    Kimi-Linear's dense layers as if they had experts.
    """
    if hparams.get("model_type") == "kimi_linear":
        return KIMI_DENSE.sub("mlp.", name)
    vision = hparams.get("vision_config")
    if isinstance(vision, dict) and vision.get("model_type") in TOWERS:
        return BARE_TOWER.sub(r"\g<tower>vision_model.", name)
    return name


def breaking_embedding(name: str, hparams: Mapping[str, Any]) -> str | None:
    """The name under which Pixtral's projector finds the embedding, of which it has one row.

    Between lines of a picture it puts the token [IMG_BREAK]. The converter's class takes that
    row (llava.py, modify_tensors), but its parent drops all of the language model before.
    """
    vision = hparams.get("vision_config")
    is_pixtral = isinstance(vision, dict) and vision.get("model_type") == "pixtral"
    return EMBEDDING if is_pixtral and name.endswith(EMBEDDING) else None


def arranger(hparams: Mapping[str, Any]) -> Arrange:
    """What is done to this model's tensors. hparams: of the whole model, mended."""
    text = hparams.get("text_config")
    part = dict(text) if isinstance(text, dict) else dict(hparams)
    kind = str(part.get("model_type"))
    if kind.startswith(("qwen3_vl_moe", "qwen3_omni_moe")):
        return lambda name, tensor: experts_turned(name, tensor, part)
    if scales_output(hparams):
        return lambda name, tensor: output_scaled(name, tensor, part)
    if kind == "gemma2" and (factor := query_factor(part)) != 1.0:
        return lambda name, tensor: queries_scaled(name, tensor, factor)
    if kind == "bamba" and rotated(part) < head_size(part):
        return lambda name, tensor: heads_halved(name, tensor, part)
    return lambda _, tensor: tensor


def scales_output(hparams: Mapping[str, Any]) -> bool:
    """Whether the decoder's output is scaled before a head that is the embedding, as T5's is."""
    kind = str(hparams.get("model_type"))
    return bool(hparams.get(SCALING_SWITCHES.get(kind, "")))


def experts_turned(name: str, tensor: Any, part: Mapping[str, Any]) -> Any:
    """Stacked experts as Qwen3-VL's checkpoints are published: inputs first.

    transformers 5 saves them outputs first, as it does for all other kinds: gate_up_proj as
    (experts, 2 * width, hidden), down_proj as (experts, hidden, width).
    """
    if not name.removesuffix(".weight").endswith(STACKED):
        return tensor
    hidden, width = part["hidden_size"], part["moe_intermediate_size"]
    gate = ".gate_up_proj" in name
    saved = (2 * width, hidden) if gate else (hidden, width)
    return tensor.permute(0, 2, 1) if tuple(tensor.shape[1:]) == saved else tensor


def heads_halved(name: str, tensor: Any, part: Mapping[str, Any]) -> Any:
    """Queries and keys of Bamba, of which only the first values of each head turn.

    The converter interleaves the two halves of a whole head. It is given them in such an order
    that the two halves of what turns come first and interleaved; the order of the rest is
    free, for queries and keys have the same.
    """
    if not name.endswith((".self_attn.q_proj.weight", ".self_attn.k_proj.weight")):
        return tensor
    size = head_size(part)
    turns = rotated(part) // 2  # pairs
    rest = size // 2 - turns
    heads = tensor.reshape(-1, size, tensor.shape[-1])
    first, second, third, fourth = heads.split([turns, turns, rest, rest], 1)
    return joined([first, third, second, fourth]).reshape(*tensor.shape)


def query_factor(part: Mapping[str, Any]) -> float:
    """What a Gemma 2's queries are to be multiplied by.

    transformers divides them by the root of query_pre_attn_scalar, llama.cpp by that of the
    head's size, but for the 27B model.
    """
    heads = part["hidden_size"] // part["num_attention_heads"]
    divided = heads if part["num_hidden_layers"] == GEMMA2_27B else head_size(part)
    return math.sqrt(divided / (part.get("query_pre_attn_scalar") or divided))


def queries_scaled(name: str, tensor: Any, factor: float) -> Any:
    return tensor * factor if name.endswith(".self_attn.q_proj.weight") else tensor


def output_scaled(name: str, tensor: Any, part: Mapping[str, Any]) -> Any:
    """The decoder's last norm with T5's factor for tied embeddings in it.

    transformers multiplies what this norm gives by d_model ** -0.5; llama.cpp does not.
    """
    if name != "decoder.final_layer_norm.weight":
        return tensor
    return tensor * part["d_model"] ** -0.5


def joined(parts: list[Any]) -> Any:
    import torch

    return torch.cat(parts, 1)
