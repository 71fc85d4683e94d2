"""Files written byte by byte, without the libraries under test: whole ones and broken ones."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 16,
}
ADAPTER = {
    "peft_type": "LORA",
    "base_model_name_or_path": "org/base",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
}


def write_safetensors(path: Path, tensors: Mapping[str, tuple[int, ...]]) -> Path:
    """Float32 zeros of the given shapes, in the order given."""
    entries, end = {}, 0
    for name, shape in tensors.items():
        begin, end = end, end + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    return write_raw_safetensors(path, json.dumps(entries).encode(), end)


def write_raw_safetensors(
    path: Path, header: bytes, data: int, *, length: int | None = None
) -> Path:
    """A file with any header, any claimed header length, and `data` zero bytes after it."""
    claimed = len(header) if length is None else length
    path.write_bytes(struct.pack("<Q", claimed) + header)
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + data)
    return path


def write_base(folder: Path, *, width: int = 8) -> Path:
    """A model folder with one layer's q_proj and v_proj."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names = [f"model.layers.0.self_attn.{kind}_proj.weight" for kind in "qv"]
    write_safetensors(folder / "model.safetensors", dict.fromkeys(names, (width, width)))
    return folder


def write_adapter(folder: Path, *, width: int = 8, **config: object) -> Path:
    """A rank-2 LoRA on q_proj for a base of `width`."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER | config))
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    write_safetensors(
        folder / "adapter_model.safetensors",
        {f"{stem}.lora_A.weight": (2, width), f"{stem}.lora_B.weight": (width, 2)},
    )
    return folder


def copy(folder: Path, target: Path) -> Path:
    """A copy of a folder, which a test may damage."""
    shutil.copytree(folder, target)
    return target


def edit_json(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes one."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def write_tiny_gguf(path: Path) -> Path:
    """The smoke test's model: one layer in Q4_K, made without torch."""
    from exporter.llamacpp.toolchain import recipe

    recipe("tiny").write_tiny_gguf(path)
    return path
