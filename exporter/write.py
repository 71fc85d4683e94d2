"""Plan → file: every offset is known before a weight is read, and the name comes last."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from exporter.core.errors import SpaceError
from exporter.core.events import Progress, Report, silent
from exporter.core.files import atomic_write, free_bytes
from exporter.core.gguf import DEFAULT_ALIGNMENT
from exporter.core.types import GGMLType

if TYPE_CHECKING:
    import numpy as np

    from exporter.convert import Slot
    from exporter.imatrix import Importance
    from exporter.quantize import Quantizer

CHUNK_VALUES = 1 << 19  # values quantized and written at a time: 2 MiB of float32
HEADROOM = 64 << 20  # bytes kept free on the disk beyond the files themselves


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each tensor's data lies."""

    offsets: dict[str, int]
    """Bytes from the start of the file."""
    size: int
    """Bytes of the whole file."""


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


def lay_out(
    header_nbytes: int, types: dict[str, GGMLType], shapes: dict[str, tuple[int, ...]]
) -> Layout:
    """Place the tensors of `types` in order, each aligned, behind an aligned header."""
    offsets, end = {}, header_nbytes
    for name, kind in types.items():
        offsets[name] = end
        end += kind.nbytes(shapes[name])
        end += -end % DEFAULT_ALIGNMENT
    return Layout(offsets, end)


def check_space(plans: list[GGUFPlan]) -> None:
    """Stop before any weight is read when the files will not fit on their disk."""
    folder = plans[0].path.parent
    needed, free = sum(plan.layout.size for plan in plans), free_bytes(folder)
    if needed + HEADROOM > free:
        raise SpaceError(
            f"`{folder}` has {free / 1e9:.2f} GB free,"
            f" and {' + '.join(plan.quant for plan in plans)} needs {needed / 1e9:.2f} GB",
            hint="free some space, name another disk with -o, or choose a smaller -q",
        )


def write_files(
    plans: list[GGUFPlan],
    slots: tuple[Slot, ...],
    quantizer: Quantizer,
    *,
    force: bool = False,
    threads: int,
    report: Report = silent,
) -> None:
    """Fill every slot once and write it to every plan's file; publish them when all are whole.

    Rows are quantized and written by `threads` workers while the next slot is being filled.
    """
    total = sum(plan.layout.size for plan in plans)
    done = sum(len(plan.header) for plan in plans)
    with ExitStack() as files, Workers(threads) as workers:
        writers = []
        for plan in plans:
            file = files.enter_context(atomic_write(plan.path, force=force))
            file.truncate(plan.layout.size)
            file.write(plan.header)
            file.flush()
            writers.append(FileWriter(plan, file.fileno(), quantizer))
        for nbytes in workers.run(jobs(slots, writers)):
            done += nbytes
            report(Progress("quantizing", done, total, "bytes"))
    report(Progress("quantizing", total, total, "bytes"))


def jobs(slots: tuple[Slot, ...], writers: list[FileWriter]) -> Iterator[list[Job]]:
    """One piece of a slot's work after the other; values live as long as the jobs that use them."""
    for slot in slots:
        assert slot.fill is not None, f"{slot.name} was written before"
        fill, slot.fill = slot.fill, None
        first = 0
        for values in fill():
            rows = values.reshape(-1, values.shape[-1] if values.ndim else 1)
            step = max(1, CHUNK_VALUES // rows.shape[1])
            yield [
                Job(writer, slot.name, rows[start : start + step], first + start)
                for writer in writers
                for start in range(0, rows.shape[0], step)
            ]
            first += rows.shape[0]


@dataclass(frozen=True, slots=True)
class FileWriter:
    """One open file and how its rows are made."""

    plan: GGUFPlan
    fd: int
    quantizer: Quantizer

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
            written = os.pwrite(self.fd, view, offset)
            view, offset = view[written:], offset + written
        return packed.nbytes


@dataclass(frozen=True, slots=True)
class Job:
    """A run of rows of one tensor, for one file."""

    writer: FileWriter
    name: str
    rows: np.ndarray[Any, Any]
    first_row: int


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

    def run(self, batches: Iterator[list[Job]]) -> Iterator[int]:
        """Give the bytes each job wrote. An error in any job is raised here."""
        running: deque[Future[int]] = deque()
        for batch in batches:
            while running:  # the slot before this one
                yield running.popleft().result()
            running.extend(self.pool.submit(job.writer.write, job) for job in batch)
            del batch
        while running:
            yield running.popleft().result()
