"""Provides an adapter of any format as a folder that PEFT can load."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.core.atomic_file import atomic_write, make_folder
from exporter.inputs.find_adapter import CONFIG, WEIGHTS
from exporter.inputs.lazy_tensor import read_tensor

if TYPE_CHECKING:
    from exporter.inputs.adapter_spec import AdapterSpec

PREFIX = "base_model.model."


@contextmanager
def peft_folder(adapter: AdapterSpec) -> Iterator[Path]:
    """The adapter's folder if PEFT saved it, else a temporary one for the block."""
    if adapter.read_by_peft or not can_be_written(adapter):
        yield adapter.folder
        return
    with tempfile.TemporaryDirectory(prefix="decant-") as folder:
        yield write_peft(adapter, Path(folder))


def can_be_written(adapter: AdapterSpec) -> bool:
    """Whether `write_peft` can write the whole adapter: pairs and whole tensors only."""
    others = (adapter.saved, adapter.rows, adapter.tuner)
    return not any(others) and not any(pair.nested for pair in adapter.pairs)


def write_peft(adapter: AdapterSpec, folder: Path) -> Path:
    """Write adapter_config.json and adapter_model.safetensors into `folder`."""
    from safetensors.torch import save

    make_folder(folder)
    modules = sorted({pair.module for pair in adapter.pairs})
    config = {"target_modules": modules, **adapter.config}
    with atomic_write(folder / CONFIG, force=True) as file:
        file.write(json.dumps(config, indent=2).encode() + b"\n")
    tensors = {
        f"{PREFIX}{pair.module}.{role}": read_tensor(tensor).contiguous()
        for pair in adapter.pairs
        for role, tensor in pair.tensors.items()
    }
    tensors |= {f"{PREFIX}{name}": read_tensor(held) for name, held in adapter.values.items()}
    with atomic_write(folder / WEIGHTS, force=True) as file:
        file.write(save(tensors, {"format": "pt"}))
    return folder
