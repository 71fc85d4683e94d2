"""Writes merged tensors as a checkpoint folder for transformers: `--to safetensors`.

The tensors keep the base's names and types and are written one at a time, shard by shard. Layout of
a file: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.core.atomic_file import atomic_write, free_bytes
from exporter.core.atomic_folder import atomic_folder, refuse_inputs, refuse_taken
from exporter.core.errors import SpaceError
from exporter.core.events import Note, Progress, Report, Step, silent
from exporter.core.machine import give_back_large_blocks
from exporter.core.paths import size_text
from exporter.core.safetensors import ITEM_BYTES, LENGTH_NBYTES
from exporter.core.silence import one_thread
from exporter.formats.export_request import ExportRequest, FolderResult, plan_request, result_name
from exporter.formats.gguf_file import HEADROOM
from exporter.formats.model_card import CARD, model_card
from exporter.inputs.embedder_files import module_files, module_folders
from exporter.merge.apply import MergedTensors, refuse_non_finite
from exporter.merge.fingerprint import identity
from exporter.merge.operations import MergePlan, describe
from exporter.merge.result_files import NAMED, WEIGHTS, result_folder

if TYPE_CHECKING:
    import torch

    from exporter.llamacpp.toolchain import Toolchain

INDEX = "model.safetensors.index.json"
MAX_SHARD = 5_000_000_000  # bytes of tensors per file
MARKS = ("config.json",)
LEFT_BEHIND = (*WEIGHTS, ".*", "adapter_*", "training_args*", "trainer_state.json")
"""Files of the base that are weights, or belong to its repository or training."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the result."""

    name: str
    tensors: tuple[Stored, ...]
    """Tensors in the order of the file."""

    @property
    def header(self) -> bytes:
        """All bytes before the data, as the reference implementation writes them."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor in self.tensors:
            begin, end = end, end + tensor.nbytes
            entries[tensor.name] = {
                "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]
            }  # fmt: skip
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(LENGTH_NBYTES, "little") + text

    @property
    def nbytes(self) -> int:
        """Size of the whole file in bytes."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of the result, unread."""

    name: str
    dtype: str
    """The type in safetensors' spelling: BF16, F32 …"""
    shape: tuple[int, ...]
    nbytes: int


def save_merged(
    request: ExportRequest,
    folder: Path,
    toolchain: Toolchain | None = None,
    *,
    max_shard: int = MAX_SHARD,
    dry_run: bool = False,
    report: Report = silent,
) -> FolderResult:
    """Write the merged checkpoint as the new folder `folder`.

    toolchain: dequantizes types that only llama.cpp can read; None refuses a base of such types.
    Shards have at most `max_shard` bytes of tensors, except for a single larger tensor. Raises
    OutputError if `folder` is taken, SpaceError before any weight is read, and the errors of
    planning and merging.
    """
    started = time.monotonic()
    refuse_folder(folder, force=request.force)
    report(Step("reading the adapter and the base"))
    plan = plan_request(request, toolchain, report=report)
    refuse_inputs(folder, inputs(plan))
    report(Note(describe(plan)))
    merged = MergedTensors(plan)
    shards = plan_shards(merged, max_shard)
    if dry_run:
        check_space(folder, sum(shard.nbytes for shard in shards))
    else:
        write_folder(merged, shards, folder, request, report=report)
    return FolderResult(
        folder,
        tuple(shard.name for shard in shards),
        sum(shard.nbytes for shard in shards),
        plan.checkpoint.folder,
        tuple(weighted.adapter.folder for weighted in plan.adapters),
        len(plan.names),
        len(plan.changes),
        time.monotonic() - started,
    )


def refuse_folder(folder: Path, *, force: bool) -> None:
    """Raise OutputError unless a merged checkpoint may be written to `folder`."""
    refuse_taken(folder, MARKS, force=force, folders=(NAMED, *module_folders(folder)))


def inputs(plan: MergePlan) -> list[Path]:
    return [plan.checkpoint.folder, *(weighted.adapter.folder for weighted in plan.adapters)]


def plan_shards(merged: MergedTensors, max_shard: int) -> tuple[Shard, ...]:
    """The tensors of each file, filled in the checkpoint's order."""
    groups: list[list[Stored]] = [[]]
    room = max_shard
    for name in merged.names:
        tensor = stored(merged, name)
        if tensor.nbytes > room and groups[-1]:
            groups.append([])
            room = max_shard
        groups[-1].append(tensor)
        room -= tensor.nbytes
    names = [f"model-{n:05}-of-{len(groups):05}.safetensors" for n in range(1, len(groups) + 1)]
    if len(groups) == 1:
        names = ["model.safetensors"]
    return tuple(
        Shard(name, tuple(sorted(group, key=by_alignment)))
        for name, group in zip(names, groups, strict=True)
    )


def stored(merged: MergedTensors, name: str) -> Stored:
    dtype, shape = merged.stored_type(name), merged.shape(name)
    count = 1
    for n in shape:
        count *= n
    return Stored(name, dtype, shape, count * ITEM_BYTES[dtype])


def by_alignment(tensor: Stored) -> tuple[int, str]:
    """The reference implementation's order: wide types first, so that all are aligned."""
    return -ITEM_BYTES[tensor.dtype], tensor.name


def write_folder(
    merged: MergedTensors,
    shards: tuple[Shard, ...],
    folder: Path,
    request: ExportRequest,
    *,
    report: Report,
) -> None:
    """Fill the folder; shards that an earlier run of this plan finished are kept."""
    key = fingerprint(merged.plan, shards)
    mine = (NAMED, *module_folders(folder))
    with atomic_folder(
        folder, plan=key, marks=MARKS, folders=mine, force=request.force, report=report
    ) as new:
        left = [shard for shard in shards if not is_whole(new / shard.name, shard)]
        check_space(folder, sum(shard.nbytes for shard in left))
        total = sum(shard.nbytes for shard in shards)
        done = total - sum(shard.nbytes for shard in left)
        report(Step("merging"))
        give_back_large_blocks()
        with one_thread():
            for shard in left:
                for nbytes in write_shard(new / shard.name, shard, merged):
                    done += nbytes
                    report(Progress("merging", done, total, "bytes"))
        for name, content in companions(merged.plan, shards, request):
            (new / name).parent.mkdir(exist_ok=True, parents=True)
            with atomic_write(new / name, force=True) as file:
                file.write(content)


def is_whole(path: Path, shard: Shard) -> bool:
    """Whether a shard exists: it gets its name only when it is complete."""
    return path.is_file() and path.stat().st_size == shard.nbytes


def check_space(folder: Path, needed: int) -> None:
    """Raise SpaceError if the merged model does not fit on the disk."""
    free = free_bytes(folder.absolute().parent)
    if needed + HEADROOM > free:
        raise SpaceError(
            f"`{folder.parent}` has {size_text(free)} free, and the merged model needs"
            f" {size_text(needed)}",
            hint="free some space, or name another disk with -o",
        )


def write_shard(path: Path, shard: Shard, merged: MergedTensors) -> Iterator[int]:
    """Write one file, tensor by tensor. Yields the bytes of each piece."""
    with atomic_write(path, force=True) as file:
        yield file.write(shard.header)
        for tensor in shard.tensors:
            values = rounded(merged, tensor)
            file.write(values.view(torch_uint8()).numpy().data)
            del values
            yield tensor.nbytes


def torch_uint8() -> torch.dtype:
    import torch

    return torch.uint8


def rounded(merged: MergedTensors, tensor: Stored) -> torch.Tensor:
    """A merged tensor flattened to (n,) in its stored type: an exact sum is rounded here, once."""
    values = merged.read(tensor.name)
    assert tuple(values.shape) == tensor.shape, tensor.name
    exact = merged.stored_dtype(tensor.name)
    if values.dtype != exact:
        values = values.to(exact)
        refuse_non_finite(tensor.name, values, merged=True)  # float16 overflows at 65504
    return values.contiguous().reshape(-1)


def companions(
    plan: MergePlan, shards: tuple[Shard, ...], request: ExportRequest
) -> Iterator[tuple[str, bytes]]:
    """Every other file of the result: the index, config, tokenizer, model card …"""
    if len(shards) > 1:
        yield INDEX, index_of(shards)
    with result_folder(plan, trust_remote_code=request.trust_remote_code) as folder:
        for path in sorted(folder.iterdir()):
            if path.is_file() and not any(fnmatch.fnmatch(path.name, p) for p in LEFT_BEHIND):
                yield path.name, settled(path, plan)
        for name in module_files(folder):
            yield name, (folder / name).read_bytes()
        for path in sorted((folder / NAMED).glob("*.jinja")):
            yield f"{NAMED}/{path.name}", path.read_bytes()
    yield CARD, model_card(plan, result_name(plan)).encode()


def settled(path: Path, plan: MergePlan) -> bytes:
    """A file's content; a config loses the settings of a quantization that was undone."""
    content = path.read_bytes()
    if path.name == "config.json" and "quantization_config" not in plan.checkpoint.config:
        config = json.loads(content)
        undone = [config.pop(key, None) for key in ("quantization_config", "quantization")]
        if any(undone):
            return json.dumps(config, indent=2).encode()
    return content


def index_of(shards: tuple[Shard, ...]) -> bytes:
    """The index of tensors and files, as transformers writes it."""
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    index = {
        "metadata": {
            "total_parameters": sum(t.nbytes // ITEM_BYTES[t.dtype] for t in tensors),
            "total_size": sum(t.nbytes for t in tensors),
        },
        "weight_map": {t.name: shard.name for shard in shards for t in shard.tensors},
    }
    return json.dumps(index, indent=2, sort_keys=True).encode() + b"\n"


def fingerprint(plan: MergePlan, shards: tuple[Shard, ...]) -> str:
    """A hash that is equal for two runs that write the same shards."""
    headers = [[shard.name, hashlib.sha256(shard.header).hexdigest()] for shard in shards]
    return hashlib.sha256(json.dumps([identity(plan), headers]).encode()).hexdigest()
