"""Inputs of the verification's tests, and checks of its findings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from exporter.core.gguf import read_gguf
from exporter.inputs.adapter import open_adapter
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import MergePlan, WeightedAdapter
from exporter.verify.verification import Verification

CHUNKS = [[1, *range(3, 60)], [1, *range(200, 250)]]


def plan_of(base: Path, *adapters: Path, scale: float = 1.0) -> MergePlan:
    weighted = [WeightedAdapter(open_adapter(adapter), scale) for adapter in adapters]
    return plan_merge(open_checkpoint(base), weighted)


def check(found: Verification, name: str) -> Any:
    return next(check for check in found.checks if check.name == name)


def weakened(adapter: Path, factor: float) -> Path:
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: t * factor if "lora_B" in n else t for n, t in tensors.items()}, path)
    return adapter


def values_of(path: Path, name: str) -> np.ndarray[Any, Any]:
    """A tensor's bytes (rows, bytes); writing to them changes the file."""
    info = next(info for info in read_gguf(path).tensors if info.name == name)
    columns = info.type.row_nbytes(info.shape[-1])
    rows = int(np.prod(info.shape[:-1])) if len(info.shape) > 1 else 1
    return np.memmap(path, np.uint8, "r+", info.offset, shape=(rows, columns))
