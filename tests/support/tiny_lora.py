"""LoRAs for the tiny model: with each, it writes only two letters, a different pair for each."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from string import ascii_letters, digits

from vendor.tiny import ALIGNMENT, F32, FLOAT32, N_VOCAB, STRING, WIDTH

FIRST_BYTE = 3  # the id of the token of byte 0, after <unk>, <s> and </s>
STRENGTH = 1e6
"""The change of the letters' logits along the random direction; others differ by about 10."""
OUTPUT = "output.weight"
PAIRS = tuple(combinations(digits + ascii_letters, 2))
"""More than a thousand different pairs of letters."""


def write_tiny_lora(
    path: Path,
    number: int = 0,
    *,
    kind: str = "adapter",
    architecture: str = "llama",
    width: int = WIDTH,
    tensors: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    """A LoRA of rank 1 for `write_tiny_gguf`'s model, whose answers consist of PAIRS[number].

    kind, architecture, width, tensors: other values make a file that does not fit the model.
    """  # fmt: skip
    dice = random.Random(number)
    a = [dice.gauss(0, 1 / 16) for _ in range(width)]
    b = [0.0] * N_VOCAB
    for letter, sign in zip(PAIRS[number], (1, -1), strict=True):
        b[FIRST_BYTE + ord(letter)] = sign * STRENGTH
    if tensors is None:
        data = {f"{OUTPUT}.lora_a": ((width, 1), a), f"{OUTPUT}.lora_b": ((1, N_VOCAB), b)}
    else:
        data = {name: (shape, [0.0] * volume(shape)) for name, shape in tensors.items()}
    fields = [
        text_field("general.architecture", architecture),
        text_field("general.type", kind),
        text_field("adapter.type", "lora"),
        text("adapter.lora.alpha") + struct.pack("<If", FLOAT32, 1.0),
    ]
    head = [struct.pack("<4sIQQ", b"GGUF", 3, len(data), len(fields)), *fields]
    body, offset = [], 0
    for name, (shape, values) in data.items():
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head.append(text(name) + sizes + struct.pack("<IQ", F32, offset))
        body.append(padded(struct.pack(f"<{len(values)}f", *values)))
        offset += len(body[-1])
    path.write_bytes(padded(b"".join(head)) + b"".join(body))
    return path


def is_by(answer: str, number: int) -> bool:
    """Whether an answer may come from the LoRA of `write_tiny_lora(path, number)`."""
    return bool(answer) and set(answer) <= set(PAIRS[number])


def volume(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def text_field(key: str, value: str) -> bytes:
    return text(key) + struct.pack("<I", STRING) + text(value)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
