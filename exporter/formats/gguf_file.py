"""Plan → file: every offset is known before a weight is read, and the name comes last."""

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

from exporter.convert.gguf_layout import Layout
from exporter.convert.lazy_graph import Read, SharedReads
from exporter.core.atomic_file import free_bytes, taken_bytes
from exporter.core.errors import SpaceError
from exporter.core.events import Progress, Report, silent
from exporter.core.ggml_types import GGMLType
from exporter.core.paths import size_text
from exporter.core.resumable_file import Journal, Unfinished, journalled

if TYPE_CHECKING:
    import numpy as np

    from exporter.convert.gguf_layout import Slot
    from exporter.quantize.imatrix import Importance
    from exporter.quantize.quantizer import Quantizer

CHUNK_VALUES = 1 << 19  # values quantized and written at a time: 2 MiB of float32
HEADROOM = 64 << 20  # bytes kept free on the disk beyond the files themselves


@dataclass(frozen=True, slots=True)
class GGUFPlan:
    """One file to be written, known to the byte."""

    path: Path
    quant: str
    header: bytes
    types: dict[str, GGMLType]
    layout: Layout
    round_to: dict[str, GGMLType]
    """Tensors whose values are rounded to a 16-bit type before they are quantized."""
    importance: Mapping[str, Importance] = field(default_factory=dict)
    """What the quantizing of a tensor pays heed to."""
    identity: Mapping[str, str] = field(default_factory=dict)
    """What the values come from: an export that was stopped is gone on with when it is equal."""
    shard: int = 0
    """Which one of its model's files it is, from 0 on."""

    def unfinished(self) -> Unfinished:
        """The file, with all that it is made of."""
        kinds = [
            [(name, kind.name) for name, kind in t.items()] for t in (self.types, self.round_to)
        ]
        digest = hashlib.sha256(self.header)
        digest.update(repr((kinds, sorted(self.layout.offsets.items()))).encode())
        facts = {**self.identity, "options": digest.hexdigest()}
        return Unfinished(self.path, self.layout.size, facts)


@dataclass(frozen=True, slots=True)
class Group:
    """Files that are made of the same slots, in one pass."""

    plans: list[GGUFPlan]
    slots: tuple[Slot, ...]
    read: Read
    """Gives the merged tensors that the slots are made of."""


def check_space(plans: list[GGUFPlan]) -> None:
    """Stop before any weight is read when the files will not fit on their disk.

    What a stopped export left of them is overwritten, so that it takes no place of its own.
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
    """Fill every slot once and write it to its group's files; publish them when all are whole.

    Rows are quantized and written by `threads` workers while the next slot is being filled.
    What a stopped export finished of the same plans is not made again.
    """
    plans = [plan for group in groups for plan in group.plans]
    total = sum(plan.layout.size for plan in plans)
    items = [plan.unfinished() for plan in plans]
    with journalled(items, force=force, report=report) as journals, Workers(threads) as workers:
        done = sum(plan.layout.size for plan in plans if plan.path not in journals)
        for group in groups:
            writers = [
                FileWriter(plan, journals[plan.path], quantizer)
                for plan in group.plans
                if plan.path in journals
            ]
            done += sum(begin_file(writer, group.slots) for writer in writers)
            for writer, nbytes, name in workers.run(jobs(group, writers)):
                writer.journal.wrote(nbytes, name)
                done += nbytes
                report(Progress("quantizing", done, total, "bytes"))
    report(Progress("quantizing", total, total, "bytes"))


def begin_file(writer: FileWriter, slots: tuple[Slot, ...]) -> int:
    """Write the header. Returns its bytes and those of the tensors that are there already."""
    plan, journal = writer.plan, writer.journal
    journal.file.seek(0)
    journal.file.write(plan.header)
    journal.file.flush()
    there = (slot for slot in slots if slot.name in plan.types and not writer.lacks(slot.name))
    return len(plan.header) + sum(plan.types[slot.name].nbytes(slot.shape) for slot in there)


def jobs(group: Group, writers: list[FileWriter]) -> Iterator[list[Job]]:
    """One piece of a slot's work after the other; values live as long as the jobs that use them."""
    wanted = [slot for slot in group.slots if any(writer.lacks(slot.name) for writer in writers)]
    reads = SharedReads((slot.values for slot in wanted), group.read)
    for slot in wanted:
        lacking = [writer for writer in writers if writer.lacks(slot.name)]
        first, n_rows = 0, math.prod(slot.shape[:-1])
        for values in reads.parts(slot.values):
            rows = values.reshape(-1, values.shape[-1] if values.ndim else 1)
            step = max(1, CHUNK_VALUES // rows.shape[1])
            yield [
                Job(
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
        """Whether the tensor belongs into this file and is not there yet."""
        return name in self.plan.types and name not in self.journal.done

    def write(self, job: Job) -> int:
        """Quantize some rows and write them where they belong. Returns the bytes written."""
        kind, name = self.plan.types[job.name], job.name
        rows = (
            round_values(job.rows, self.plan.round_to[name])
            if name in self.plan.round_to
            else job.rows
        )
        packed = self.quantizer.quantize(
            rows, kind, self.plan.importance.get(name), first_row=job.first_row
        )
        offset = self.plan.layout.offsets[name] + job.first_row * packed.shape[1]
        view = packed.reshape(-1).data
        while view:
            written = os.pwrite(self.journal.file.fileno(), view, offset)
            view, offset = view[written:], offset + written
        return packed.nbytes


@dataclass(frozen=True, slots=True)
class Job:
    """A run of rows of one tensor, for one file."""

    writer: FileWriter
    name: str
    rows: np.ndarray[Any, Any]
    first_row: int
    is_last: bool
    """Whether the tensor is whole with it and those before it."""


Done: TypeAlias = "tuple[FileWriter, int, str | None]"
"""Whose bytes, how many, and the tensor that is whole with them."""


def round_values(rows: np.ndarray[Any, Any], kind: GGMLType) -> np.ndarray[Any, Any]:
    """Float32 rows as they would come back from a 16-bit file; to nearest, ties to even."""
    import torch

    dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[kind.name]
    return torch.from_numpy(rows).to(dtype).to(torch.float32).numpy()


class Workers:
    """A few threads, fed no faster than they work: the slot at hand and the one before it."""

    def __init__(self, threads: int) -> None:
        """Start no thread yet."""
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="quantize")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def run(self, batches: Iterator[list[Job]]) -> Iterator[Done]:
        """Give what each job wrote, in order. An error in any job is raised here."""
        running: deque[tuple[FileWriter, Future[int], str | None]] = deque()
        for batch in batches:
            while running:  # the slot before this one
                yield ended(*running.popleft())
            for job in batch:
                future = self.pool.submit(job.writer.write, job)
                running.append((job.writer, future, job.name if job.is_last else None))
            batch.clear()
            del job
        while running:
            yield ended(*running.popleft())


def ended(writer: FileWriter, future: Future[int], name: str | None) -> Done:
    return writer, future.result(), name
