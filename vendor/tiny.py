"""Writes a small GGUF that the server can decode: one Q4_K llama layer."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH = 256  # one Q4_K block per row
N_HEAD = 4  # of queries
N_HEAD_KV = 2  # of keys and values
CONTEXT = 256  # tokens
N_VOCAB = 288  # a multiple of 32, which ggml's repacked and AMX kernels require of a matrix
ALIGNMENT = 32  # GGUF v3: the default if general.alignment is absent

# GGUF v3 value types (gguf_metadata_value_type).
UINT32, INT32, FLOAT32, STRING, ARRAY = 4, 5, 6, 8, 9
# ggml tensor types (ggml_type).
F32, Q4_K = 0, 12
# llama.cpp token types (llama_token_type).
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6

Value = int | float | str | Sequence[str] | Sequence[int] | Sequence[float]


@dataclass(frozen=True, slots=True)
class TinyTensor:
    """One tensor's metadata and its bytes."""

    name: str
    shape: tuple[int, ...]
    """The dimensions in ggml's order, row length first."""
    kind: int
    data: bytes


def write_tiny_gguf(path: Path, *, seed: int = 0) -> None:
    """Write a one-layer llama with random Q4_K weights to `path`, about 300 kB."""
    tensors = list(_tensors(random.Random(seed)))  # noqa: S311 - weights, not secrets
    fields = _metadata()
    head = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(fields))]
    head += [_string(key) + _value(value) for key, value in fields.items()]
    offset, body = 0, []
    for tensor in tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        head.append(_string(tensor.name) + shape + struct.pack("<IQ", tensor.kind, offset))
        body.append(_padded(tensor.data))
        offset += len(body[-1])
    path.write_bytes(_padded(b"".join(head)) + b"".join(body))


def _metadata() -> dict[str, Value]:
    """Return the metadata of a one-layer llama with a SentencePiece vocabulary of all bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [UNKNOWN, CONTROL, CONTROL, *([BYTE] * 256)]
    words = [f"▁w{n}" for n in range(N_VOCAB - len(pieces))]
    return {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.block_count": 1,
        "llama.feed_forward_length": WIDTH,
        "llama.attention.head_count": N_HEAD,
        "llama.attention.head_count_kv": N_HEAD_KV,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": WIDTH // N_HEAD,
        "llama.vocab_size": N_VOCAB,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces + words,
        "tokenizer.ggml.scores": [0.0] * len(pieces) + [-float(n) for n in range(len(words))],
        "tokenizer.ggml.token_type": kinds + [NORMAL] * len(words),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def _tensors(generator: random.Random) -> Iterable[TinyTensor]:
    """Yield the matrices in Q4_K and the norms in F32; shapes are (row length, rows)."""
    n_kv = WIDTH // N_HEAD * N_HEAD_KV
    for name, n_rows in (
        ("token_embd", N_VOCAB),
        ("output", N_VOCAB),
        ("blk.0.attn_q", WIDTH),
        ("blk.0.attn_k", n_kv),
        ("blk.0.attn_v", n_kv),
        ("blk.0.attn_output", WIDTH),
        ("blk.0.ffn_gate", WIDTH),
        ("blk.0.ffn_up", WIDTH),
        ("blk.0.ffn_down", WIDTH),
    ):
        rows = b"".join(_q4_k_block(generator) for _ in range(n_rows))
        yield TinyTensor(f"{name}.weight", (WIDTH, n_rows), Q4_K, rows)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        ones = struct.pack(f"<{WIDTH}f", *([1.0] * WIDTH))
        yield TinyTensor(f"{name}.weight", (WIDTH,), F32, ones)


def _q4_k_block(generator: random.Random) -> bytes:
    """Return 256 random weights around zero in 144 bytes: fp16 d and dmin, 12 bytes scales,
    nibbles.
    """
    # weight = d * scale * nibble - dmin * min. Equal 6-bit scales and mins of 32 (packed as the low
    # 6 bits of bytes 0-7, then nibble pairs plus the top 2 bits of those bytes) and dmin = 7.5 d
    # centre the nibbles 0..15 on zero (ggml block_q4_K).
    d = 2.0**-10
    scales = bytes([32 | 0x80] * 8 + [0] * 4)
    return struct.pack("<ee", d, 7.5 * d) + scales + generator.randbytes(128)


def _value(value: Value) -> bytes:
    """Return a metadata value preceded by its type."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    head = struct.pack("<I", ARRAY)
    if isinstance(value[0], str):
        texts = b"".join(_string(str(item)) for item in value)
        return head + struct.pack("<IQ", STRING, len(value)) + texts
    kind, code = (FLOAT32, "f") if isinstance(value[0], float) else (INT32, "i")
    return head + struct.pack(f"<IQ{len(value)}{code}", kind, len(value), *value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
