"""Checkpoints of distributed trainings, as FSDP and DeepSpeed lay them out."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def save_fsdp(folder: Path, tensors: Mapping[str, Any], *, ranks: int = 2) -> Path:
    """Save a checkpoint as FSDP does: each tensor is cut by rows, with a file for each process.

    Like accelerate, everything is nested in "model"; an optimizer's state lies beside it.
    """
    import torch
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        BytesStorageMetadata,
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    folder.mkdir(parents=True)
    files = [io.BytesIO() for _ in range(ranks)]
    entries: dict[str, Any] = {"optim.step": BytesStorageMetadata()}
    places, names = {}, {"optim.step": ("optim", "step"), "optim.state": ("optim", "state")}
    torch.save(7, files[0])
    places[MetadataIndex("optim.step")] = _StorageInfo("__0_0.distcp", 0, files[0].tell())
    nested = {f"model.{name}": ("model", name) for name in tensors}
    held = {f"model.{name}": values for name, values in tensors.items()}
    held["optim.state"] = torch.zeros(4)
    for key, values in held.items():
        chunks, first = [], 0
        parts = values.tensor_split(ranks) if values.dim() and len(values) >= ranks else (values,)
        for rank, part in enumerate(parts):
            offsets = torch.Size([first, *[0] * (values.dim() - 1)][: values.dim()])
            first += len(part) if part.dim() else 0
            chunks.append(ChunkStorageMetadata(offsets, part.shape))
            start = files[rank].tell()
            torch.save(part.clone(), files[rank])
            index = MetadataIndex(key, offsets)
            length = files[rank].tell() - start
            places[index] = _StorageInfo(f"__{rank}_0.distcp", start, length)
        properties = TensorProperties(dtype=values.dtype)
        entries[key] = TensorStorageMetadata(properties, values.shape, chunks)
    for rank, file in enumerate(files):
        (folder / f"__{rank}_0.distcp").write_bytes(file.getvalue())
    metadata = Metadata(entries, planner_data=names | nested, storage_data=places)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def save_zero(checkpoint: Path, *, script: bool = True) -> Path:
    """The files of a DeepSpeed checkpoint, by their names."""
    step = checkpoint / "global_step50"
    step.mkdir(parents=True)
    for name in ("zero_pp_rank_0_mp_rank_00_model_states.pt",
                 "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"):  # fmt: skip
        (step / name).write_bytes(b"PK")
    (checkpoint / "latest").write_text("global_step50")
    if script:
        (checkpoint / "zero_to_fp32.py").write_text("")
    return checkpoint
