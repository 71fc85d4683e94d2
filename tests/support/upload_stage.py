"""GGUFs of a few kilobytes, a hub that takes them, and pushes in processes of their own."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.fake_upload_hub import FakeUploadHub
from tests.support.upload_files import TOKEN

CHECKOUT = Path(__file__).parents[2]
REPO = "org/my-lora-GGUF"
MADE = {
    "general.architecture": "llama",
    "general.license": "apache-2.0",
    "decant.version": "0.1.0",
    "decant.base": "small-base",
    "decant.base.repo": "org/small-base",
    "decant.base.commit": "beef" * 10,
    "decant.adapter": "my-lora",
    "decant.adapter.sha256": "ab" * 32,
    "decant.adapter.scale": "1",
}
"""The keys of an export."""
STRING, UINT16, INT32 = 8, 2, 5  # types of values (gguf.md)


def write_gguf(path: Path, keys: Mapping[str, object] = MADE, *, size: int = 4096) -> Path:
    """A whole GGUF with one F32 tensor of `size` random bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = b"".join(field(key, value) for key, value in keys.items())
    name = b"token_embd.weight"
    tensor = struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, size // 4, 0, 0)
    head = struct.pack("<4sIQQ", b"GGUF", 3, 1, len(keys)) + fields + tensor
    data = random.Random(path.name).randbytes(size)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def field(key: str, value: object) -> bytes:
    head = struct.pack("<Q", len(key.encode())) + key.encode()
    if isinstance(value, str):
        text = value.encode()
        return head + struct.pack("<IQ", STRING, len(text)) + text
    kind, code = (INT32, "<Ii") if key.endswith("tensors.count") else (UINT16, "<IH")
    return head + struct.pack(code, kind, value)


def write_split(folder: Path, stem: str, count: int = 3) -> list[Path]:
    """A model that is split into `count` files."""
    return [
        write_gguf(
            folder / f"{stem}-{number + 1:05}-of-{count:05}.gguf",
            {**MADE, "split.no": number, "split.count": count, "split.tensors.count": count},
        )
        for number in range(count)
    ]


def environment(hub: FakeUploadHub, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
        "PYTHONPATH": str(CHECKOUT),
        **more,
    }


def start_push(hub: FakeUploadHub, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Run `decant push … --trust-token 127.0.0.1` in a separate process."""
    words = [*map(str, arguments), "--trust-token", "127.0.0.1"]
    return subprocess.Popen(
        [sys.executable, "-m", "exporter", "push", *words],
        cwd=CHECKOUT,
        env=environment(hub),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
