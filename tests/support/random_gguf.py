"""Writes a Llama of a real shape with random weights, which are drawn as quantized blocks.

Drawing the blocks of Q4_K and Q6_K takes seconds, while quantizing real weights takes minutes, and
an engine computes with both at the same speed. All scales of a block are equal, so that weights
are spread evenly around zero.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Rows = np.ndarray[Any, np.dtype[np.uint8]]

BLOCK = 256  # values
ENDS = ("<|begin_of_text|>", "<|eot_id|>")
SCALE = 32  # each of a block's 6-bit scales: the middle of their range
Q4_K_SCALES = bytes([160] * 8 + [0] * 4)  # eight scales and minima of 32, packed in 6 bits each
DRAWN = 1 << 15  # blocks; a tensor repeats them
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes."""

    layers: int = 16
    width: int = 2048
    inner: int = 8192
    heads: int = 32
    kv_heads: int = 8
    vocabulary: int = 128256
    context: int = 131072
    has_plain_head: bool = False
    """Whether the head is in float32, so that no two logits are equal."""

    @property
    def kv_width(self) -> int:
        return self.width // self.heads * self.kv_heads


LLAMA_1_5B = Shape()
"""The shape of Llama 3.2 1B, with a separate head as large as its embedding."""
LLAMA_8B = Shape(layers=32, width=4096, inner=14336)
"""The shape of Llama 3.1 8B."""
TINY = Shape(layers=2, width=256, inner=512, heads=4, kv_heads=2, vocabulary=2048, context=4096)


def write_random(path: Path, shape: Shape, gguf_py: Path) -> int:
    """Write the model to `path` and return its size. `gguf_py` is llama.cpp's own package."""
    if str(gguf_py) not in sys.path:
        sys.path.append(str(gguf_py))
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    add_metadata(writer, shape)
    draw = np.random.default_rng(7)
    q4 = drawn_q4_k(draw, 0.8 / shape.width**0.5)
    q6 = drawn_q6_k(draw, 0.8 / shape.width**0.5)
    kinds = gguf.GGMLQuantizationType

    def add(name: str, rows: int, columns: int, kind: Any) -> None:
        blocks = q6 if kind == kinds.Q6_K else q4
        count = rows * columns // BLOCK
        data = np.resize(blocks, (count, blocks.shape[1])).reshape(rows, -1)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(shape.width, np.float32))

    add("token_embd", shape.vocabulary, shape.width, kinds.Q4_K)
    if shape.has_plain_head:
        head = draw.standard_normal((shape.vocabulary, shape.width), np.float32)
        writer.add_tensor("output.weight", head)
    else:
        add("output", shape.vocabulary, shape.width, kinds.Q6_K)
    add_norm("output_norm")
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        better = kinds.Q6_K if layer % 2 else kinds.Q4_K  # half of the layers, as in Q4_K_M
        add(f"{block}attn_q", shape.width, shape.width, kinds.Q4_K)
        add(f"{block}attn_k", shape.kv_width, shape.width, kinds.Q4_K)
        add(f"{block}attn_v", shape.kv_width, shape.width, better)
        add(f"{block}attn_output", shape.width, shape.width, kinds.Q4_K)
        add(f"{block}ffn_gate", shape.inner, shape.width, kinds.Q4_K)
        add(f"{block}ffn_up", shape.inner, shape.width, kinds.Q4_K)
        add(f"{block}ffn_down", shape.width, shape.inner, better)
        add_norm(f"{block}attn_norm")
        add_norm(f"{block}ffn_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


def add_metadata(writer: Any, shape: Shape) -> None:
    """The settings and the vocabulary."""
    writer.add_file_type(15)  # LLAMA_FTYPE_MOSTLY_Q4_K_M
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_vocab_size(shape.vocabulary)
    tokens = tokens_of(shape)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 2) + [3, 3])  # normal; control
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_chat_template(TEMPLATE)


def tokens_of(shape: Shape) -> list[str]:
    """A vocabulary of 256 bytes, a merged pair, two end tokens, and words."""
    letters = [chr(n) for n in (*range(33, 127), *range(161, 173), *range(174, 256))]
    bytes_ = [*letters, *(chr(256 + n) for n in range(256 - len(letters)))]
    words = [f"Ġw{n}" for n in range(shape.vocabulary - len(bytes_) - len(ENDS) - 1)]
    return [*bytes_, "Ġt", *words, *ENDS]


def drawn_q4_k(draw: np.random.Generator, spread: float) -> Rows:
    """Blocks of Q4_K, (DRAWN, 144): two scales in float16, 6-bit scales, 4-bit values."""
    import numpy as np

    step = spread / 4.61  # the spread of whole numbers from 0 to 15
    ends = np.array([step / SCALE, 7.5 * step / SCALE], np.float16).view(np.uint8)
    head = np.tile(np.concatenate([ends, np.frombuffer(Q4_K_SCALES, np.uint8)]), (DRAWN, 1))
    values = draw.integers(0, 256, (DRAWN, BLOCK // 2), np.uint8)
    return np.concatenate([head, values], axis=1)


def drawn_q6_k(draw: np.random.Generator, spread: float) -> Rows:
    """Blocks of Q6_K, (DRAWN, 210): 6-bit values, 8-bit scales, a scale in float16."""
    import numpy as np

    step = spread / 18.5  # the spread of whole numbers from -32 to 31
    values = draw.integers(0, 256, (DRAWN, BLOCK * 6 // 8), np.uint8)
    scales = np.full((DRAWN, BLOCK // 16), SCALE, np.uint8)
    end = np.tile(np.array([step / SCALE], np.float16).view(np.uint8), (DRAWN, 1))
    return np.concatenate([values, scales, end], axis=1)
