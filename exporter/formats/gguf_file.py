"""Writes planned files: all offsets are known before a weight is read, and the name comes last."""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from typing_extensions import Self

from exporter.convert.gguf_layout import NO_TOKENS, Layout, TokenFacts
from exporter.convert.lazy_graph import Read, RowBlocks, SharedReads
from exporter.core.atomic_file import free_bytes, taken_bytes
from exporter.core.buffer_pool import Pool
from exporter.core.errors import SpaceError
from exporter.core.events import Progress, Report, silent
from exporter.core.ggml_types import GGMLType
from exporter.core.paths import size_text
from exporter.core.resumable_file import Journal, Unfinished, journalled
from exporter.inputs.lazy_tensor import converted

if TYPE_CHECKING:
    import numpy as np
    import torch

    from exporter.convert.gguf_layout import Slot
    from exporter.merge.row_blocks import RowBlock
    from exporter.quantize.imatrix import Importance
    from exporter.quantize.quantizer import Quantizer

AHEAD, HELD = 64, 8  # runs of rows per thread that may wait: all, and those of tensors in memory
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

    `threads` workers read, merge, quantize and write blocks of rows; this thread evaluates slots
    that must be whole. Finished tensors of a stopped export with the same plans are skipped.
    """
    plans = [plan for group in groups for plan in group.plans]
    total = sum(plan.layout.size for plan in plans)
    items = [plan.unfinished() for plan in plans]
    pool = Pool()
    with (
        journalled(items, force=force, report=report) as journals,
        QuantizerThreads(threads) as workers,
    ):
        done = sum(plan.layout.size for plan in plans if plan.path not in journals)
        for group in groups:
            writers = [
                FileWriter(plan, journals[plan.path], quantizer, pool)
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


def row_runs(group: Group, writers: list[FileWriter]) -> Iterator[RowRun]:
    """The runs of rows of each slot in turn; values live as long as the runs that use them.

    A tensor is whole in float32 only if its merge is no sum of plain LoRAs or its rows are
    rearranged.
    """
    wanted = [slot for slot in group.slots if any(writer.lacks(slot.name) for writer in writers)]
    reads = SharedReads((slot.values for slot in wanted), group.read, group.row_blocks)
    for slot in wanted:
        lacking = tuple(writer for writer in writers if writer.lacks(slot.name))
        first, n_rows = 0, math.prod(slot.shape[:-1])
        for block in reads.blocks(slot.values):
            last = first + block.n_rows
            yield RowRun(lacking, slot.name, block, first, is_last=last == n_rows)
            first = last


@dataclass(frozen=True, slots=True)
class FileWriter:
    """One open file and how its rows are made."""

    plan: GGUFPlan
    journal: Journal
    quantizer: Quantizer
    pool: Pool

    def lacks(self, name: str) -> bool:
        """Whether the tensor belongs into this file and is not written yet."""
        return name in self.plan.types and name not in self.journal.done

    def write(self, name: str, rows: torch.Tensor, first_row: int) -> int:
        """Quantize rows (n, columns) of a tensor and write them at their offset.

        Returns the bytes written.
        """
        kind = self.plan.types[name]
        values = in_float32(rows, self.plan.round_to.get(name), self.pool)
        packed = self.quantizer.quantize(
            values, kind, self.plan.importance.get(name), first_row=first_row
        )
        offset = self.plan.layout.offsets[name] + first_row * packed.shape[1]
        view = packed.reshape(-1).data
        while view:
            written = os.pwrite(self.journal.file.fileno(), view, offset)
            view, offset = view[written:], offset + written
        return packed.nbytes


@dataclass(frozen=True, slots=True)
class RowRun:
    """A run of rows of one tensor, for all files that lack it."""

    writers: tuple[FileWriter, ...]
    name: str
    block: RowBlock
    first_row: int
    is_last: bool
    """Whether it completes the tensor."""

    def write(self) -> list[int]:
        """Compute the rows and write them to every file. Returns the bytes written to each."""
        rows = self.block.compute()
        return [writer.write(self.name, rows, self.first_row) for writer in self.writers]


Done: TypeAlias = tuple[FileWriter, int, str | None]
"""The writer, the bytes written, and the tensor that they complete."""


def in_float32(rows: torch.Tensor, kind: GGMLType | None, pool: Pool) -> np.ndarray[Any, Any]:
    """Rows (n, columns) in contiguous float32, rounded to the 16-bit type `kind` if there is one.

    It rounds to nearest, ties to even.
    """
    import torch

    if kind is not None:
        rounded = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[kind.name]
        if rows.dtype != rounded:
            rows = converted(converted(rows, torch.float32, pool), rounded, pool)
    found: np.ndarray[Any, Any] = converted(rows, torch.float32, pool).contiguous().numpy()
    return found


class QuantizerThreads:
    """Threads that compute, quantize and write runs of rows."""

    def __init__(self, threads: int) -> None:
        import torch

        self.threads = threads
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

    def run(self, runs: Iterable[RowRun]) -> Iterator[Done]:
        """Yield the result of each run for each file, in order. An error in any run is raised here.

        At most two tensors are in memory besides those that HELD runs are cut from.
        """
        running: deque[Running] = deque()
        held = 0
        for run in runs:
            is_held = run.block.is_held
            while len(running) >= AHEAD * self.threads or (is_held and held >= HELD * self.threads):
                held -= running[0].is_held
                yield from running.popleft().ended()
            name = run.name if run.is_last else None
            running.append(Running(run.writers, name, is_held, self.pool.submit(run.write)))
            held += is_held
            del run  # with its tensor
            while running and running[0].future.done():
                held -= running[0].is_held
                yield from running.popleft().ended()
        while running:
            yield from running.popleft().ended()


@dataclass(frozen=True, slots=True)
class Running:
    """A run of rows that a thread computes."""

    writers: tuple[FileWriter, ...]
    name: str | None
    """The tensor that it completes."""
    is_held: bool
    future: Future[list[int]]

    def ended(self) -> Iterator[Done]:
        """Wait for its end; yields its result for each file."""
        for writer, nbytes in zip(self.writers, self.future.result(), strict=True):
            yield writer, nbytes, self.name
