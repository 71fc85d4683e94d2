"""Writes planned files: all offsets are known before a weight is read, and the name comes last."""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from typing_extensions import Self

from exporter.convert.gguf_layout import NO_TOKENS, Layout, TokenFacts
from exporter.convert.lazy_graph import Read, RowBlocks, SharedReads
from exporter.core.atomic_file import free_bytes, taken_bytes
from exporter.core.errors import SpaceError
from exporter.core.events import Progress, Report, silent
from exporter.core.ggml_types import GGMLType
from exporter.core.paths import size_text
from exporter.core.resumable_file import Journal, Unfinished, journalled

if TYPE_CHECKING:
    import numpy as np
    import torch

    from exporter.convert.gguf_layout import Slot
    from exporter.quantize.imatrix import Importance
    from exporter.quantize.quantizer import Quantizer

CHUNK_VALUES = 1 << 19  # values quantized and written per step: 2 MiB of float32
HEADROOM = 64 << 20  # bytes kept free on the disk besides the files


@dataclass(frozen=True, slots=True)
class GGUFPlan:
    """One file to write: its header, and the place of every byte."""

    path: Path
    quant: str
    header: bytes
    types: dict[str, GGMLType]
    layout: Layout
    round_to: dict[str, GGMLType]
    """Tensors whose values are rounded to a 16-bit type before they are quantized."""
    importance: Mapping[str, Importance] = field(default_factory=dict)
    """Importance matrix per tensor."""
    identity: Mapping[str, str] = field(default_factory=dict)
    """Fingerprint of the values' sources; a stopped export resumes if it is equal."""
    shard: int = 0
    """Number of the file among its model's, from 0."""

    def unfinished(self) -> Unfinished:
        """The file with the facts that identify its contents."""
        kinds = [
            [(name, kind.name) for name, kind in t.items()] for t in (self.types, self.round_to)
        ]
        digest = hashlib.sha256(self.header)
        digest.update(repr((kinds, sorted(self.layout.offsets.items()))).encode())
        facts = {**self.identity, "options": digest.hexdigest()}
        return Unfinished(self.path, self.layout.size, facts)


@dataclass(frozen=True, slots=True)
class Group:
    """Files that are made from the same slots, in one pass."""

    plans: list[GGUFPlan]
    slots: tuple[Slot, ...]
    read: Read
    """Returns the merged tensors that the slots are made of."""
    row_blocks: RowBlocks | None = None
    """Returns them in blocks of rows."""
    tokens: TokenFacts = NO_TOKENS
    """Facts about the tokenizer whose keys the files hold."""


def check_space(plans: list[GGUFPlan]) -> None:
    """Raise SpaceError, before any weight is read, if the files do not fit on their disk.

    The remains of a stopped export are overwritten, so their space counts as free.
    """
    folder = plans[0].path.parent
    needed = sum(plan.layout.size for plan in plans)
    left = (path for plan in plans if (path := plan.unfinished().partial).exists())
    free = free_bytes(folder) + sum(map(taken_bytes, left))
    if needed + HEADROOM > free:
        raise SpaceError(
            f"`{folder}` has {size_text(free)} free,"
            f" and {' + '.join(plan.quant for plan in plans)} needs {size_text(needed)}",
            hint="free some space, name another disk with -o, or choose a smaller -q",
        )


def write_files(
    groups: Sequence[Group],
    quantizer: Quantizer,
    *,
    force: bool = False,
    threads: int,
    report: Report = silent,
) -> None:
    """Evaluate every slot once and write it to its group's files; publish all of them when
    complete.

    `threads` workers quantize and write rows while the next slot is evaluated. Finished tensors of
    a stopped export with the same plans are skipped.
    """
    plans = [plan for group in groups for plan in group.plans]
    total = sum(plan.layout.size for plan in plans)
    items = [plan.unfinished() for plan in plans]
    with (
        journalled(items, force=force, report=report) as journals,
        QuantizerThreads(threads) as workers,
    ):
        done = sum(plan.layout.size for plan in plans if plan.path not in journals)
        for group in groups:
            writers = [
                FileWriter(plan, journals[plan.path], quantizer)
                for plan in group.plans
                if plan.path in journals
            ]
            done += sum(begin_file(writer, group.slots) for writer in writers)
            for writer, nbytes, name in workers.run(row_runs(group, writers)):
                writer.journal.wrote(nbytes, name)
                done += nbytes
                report(Progress("quantizing", done, total, "bytes"))
    report(Progress("quantizing", total, total, "bytes"))


def begin_file(writer: FileWriter, slots: tuple[Slot, ...]) -> int:
    """Write the header. Returns its bytes and those of the tensors that are written already."""
    plan, journal = writer.plan, writer.journal
    journal.file.seek(0)
    journal.file.write(plan.header)
    journal.file.flush()
    there = (slot for slot in slots if slot.name in plan.types and not writer.lacks(slot.name))
    return len(plan.header) + sum(plan.types[slot.name].nbytes(slot.shape) for slot in there)


def row_runs(group: Group, writers: list[FileWriter]) -> Iterator[list[RowRun]]:
    """The runs of rows of each slot in turn; values live as long as the runs that use them.

    A tensor is whole in float32 only if the base stores it so or its merge computes it so.
    """
    wanted = [slot for slot in group.slots if any(writer.lacks(slot.name) for writer in writers)]
    reads = SharedReads((slot.values for slot in wanted), group.read, group.row_blocks)
    for slot in wanted:
        lacking = [writer for writer in writers if writer.lacks(slot.name)]
        first, n_rows = 0, math.prod(slot.shape[:-1])
        for values in reads.parts(slot.values):
            rows = values.reshape(-1, values.shape[-1] if values.dim() else 1)
            step = max(1, CHUNK_VALUES // rows.shape[1])
            yield [
                RowRun(
                    writer,
                    slot.name,
                    rows[start : start + step],
                    first + start,
                    is_last=first + min(start + step, rows.shape[0]) == n_rows,
                )
                for writer in lacking
                for start in range(0, rows.shape[0], step)
            ]
            first += rows.shape[0]


@dataclass(frozen=True, slots=True)
class FileWriter:
    """One open file and how its rows are made."""

    plan: GGUFPlan
    journal: Journal
    quantizer: Quantizer

    def lacks(self, name: str) -> bool:
        """Whether the tensor belongs into this file and is not written yet."""
        return name in self.plan.types and name not in self.journal.done

    def write(self, run: RowRun) -> int:
        """Quantize some rows and write them at their offset. Returns the bytes written."""
        kind, name = self.plan.types[run.name], run.name
        rows = in_float32(run.rows, self.plan.round_to.get(name))
        packed = self.quantizer.quantize(
            rows, kind, self.plan.importance.get(name), first_row=run.first_row
        )
        offset = self.plan.layout.offsets[name] + run.first_row * packed.shape[1]
        view = packed.reshape(-1).data
        while view:
            written = os.pwrite(self.journal.file.fileno(), view, offset)
            view, offset = view[written:], offset + written
        return packed.nbytes


@dataclass(frozen=True, slots=True)
class RowRun:
    """A run of rows of one tensor, for one file."""

    writer: FileWriter
    name: str
    rows: torch.Tensor
    """(n, columns), of any float type."""
    first_row: int
    is_last: bool
    """Whether it completes the tensor."""


Done: TypeAlias = "tuple[FileWriter, int, str | None]"
"""The writer, the bytes written, and the tensor that they complete."""


def in_float32(rows: torch.Tensor, kind: GGMLType | None) -> np.ndarray[Any, Any]:
    """Rows (n, columns) in contiguous float32, rounded to the 16-bit type `kind` if there is one.

    It rounds to nearest, ties to even.
    """
    import torch

    if kind is not None:
        rounded = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[kind.name]
        rows = rows.float().to(rounded)
    found: np.ndarray[Any, Any] = rows.float().contiguous().numpy()
    return found


class QuantizerThreads:
    """Threads that process two slots at a time: the current one and the one before."""

    def __init__(self, threads: int) -> None:
        import torch

        self.pool = ThreadPoolExecutor(
            threads,
            thread_name_prefix="quantize",
            initializer=torch.set_num_threads,
            initargs=(1,),  # torch counts per thread, and would start others for each run of rows
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def run(self, batches: Iterator[list[RowRun]]) -> Iterator[Done]:
        """Yield the result of each run, in order. An error in any run is raised here."""
        running: deque[tuple[FileWriter, Future[int], str | None]] = deque()
        for batch in batches:
            while running:  # the slot before this one
                yield ended(*running.popleft())
            for run in batch:
                future = self.pool.submit(run.writer.write, run)
                running.append((run.writer, future, run.name if run.is_last else None))
            batch.clear()
            del run
        while running:
            yield ended(*running.popleft())


def ended(writer: FileWriter, future: Future[int], name: str | None) -> Done:
    return writer, future.result(), name
