"""Times the export's own steps on a few made-up tensors: read, merge, quantize, write."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from exporter.convert.gguf_layout import Slot, lay_out
from exporter.convert.lazy_graph import Leaf
from exporter.core.buffer_pool import Pool
from exporter.core.ggml_types import GGMLType
from exporter.core.resumable_file import Journal, Unfinished
from exporter.core.safetensors import StoredTensor
from exporter.core.silence import one_thread
from exporter.forecast.work import Task
from exporter.formats.gguf_file import (
    FileWriter,
    GGUFPlan,
    Group,
    QuantizerThreads,
    RowRun,
    row_runs,
)
from exporter.inputs.adapter_spec import AdapterSpec, LoraPair
from exporter.inputs.checkpoint import Checkpoint
from exporter.inputs.lazy_tensor import nbytes_of
from exporter.merge.apply import MergedTensors
from exporter.merge.operations import Change, LoraSum, MergePlan
from exporter.merge.row_blocks import BLOCK_VALUES
from exporter.quantize.imatrix import Importance

if TYPE_CHECKING:
    import torch

    from exporter.quantize.quantizer import Quantizer

COLUMNS = 4096  # values of a row
MOST_ROWS, FEWEST_ROWS = 1024, 4  # of a matrix
RUN_ROWS = BLOCK_VALUES // COLUMNS  # about those that one thread computes in a step
TENSORS = 5  # of which the first and the last are not timed: nothing runs beside them
TRIAL_S = 0.25  # seconds for the timed tensors of one task, at the most
GROWTH = 8  # of the rows, until the next trial would take longer
HALF_OF_ONE = 0x3C00
"""Bits of values about 0.01 in bfloat16, of 1 in float16."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds for a value of one kind of work."""

    all_s: float
    """On all threads together."""
    main_s: float
    """Of the thread that hands the blocks out."""


@dataclass(frozen=True, slots=True)
class Made:
    """A small matrix (rows, columns) in memory: half of an adapter's pair."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.dtype, self.shape)

    def read(self) -> torch.Tensor:
        """Small numbers, of its shape (rows, columns)."""
        import torch

        return torch.full(self.shape, 1e-3)


def pace_of(task: Task, quantizer: Quantizer, threads: int) -> Pace:
    """Time one kind of work, with as many rows as a moment allows.

    Where these are too few for all threads, the threads' number divides the time.
    """
    rows, most = FEWEST_ROWS, max(MOST_ROWS, 2 * threads * RUN_ROWS)
    found = timed(task, rows, quantizer, threads)
    # what a step costs besides its rows makes the first times too long to reckon with
    while rows < most and found.all_s * rows * COLUMNS * (TENSORS - 2) * GROWTH < TRIAL_S:
        rows = min(most, rows * GROWTH)
        found = timed(task, rows, quantizer, threads)
    busy = min(threads, math.ceil(rows / RUN_ROWS))
    return replace(found, all_s=max(found.all_s * busy / threads, found.main_s))


def timed(task: Task, rows: int, quantizer: Quantizer, threads: int) -> Pace:
    """The pace with matrices of (rows, COLUMNS)."""
    with (
        tempfile.TemporaryDirectory(prefix="decant-") as folder,
        one_thread(),
        ExitStack() as files,
    ):
        base = Path(folder) / "values"
        write_values(base, task.stored, rows)
        group = sample(task, base, rows)
        ends: list[float] = []
        clock = Evaluating()
        with QuantizerThreads(threads) as workers:
            pool = Pool()
            writers = [
                writer_into(plan, files.enter_context(plan.path.open("w+b")), quantizer, pool)
                for plan in group.plans
            ]
            for _, _, name in workers.run(clock.runs(row_runs(group, writers))):
                if name is not None:
                    ends.append(time.perf_counter())
    each = len(group.plans)  # ends of every tensor, one for each file
    values = rows * COLUMNS
    first, last = ends[each - 1], ends[each * (TENSORS - 1) - 1]
    return Pace((last - first) / (TENSORS - 2) / values, clock.seconds / TENSORS / values)


class Evaluating:
    """Times the generator that hands the blocks out, and merges what must be whole."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def runs(self, runs: Iterator[RowRun]) -> Iterator[RowRun]:
        """The same runs."""
        while True:
            began = time.thread_time()
            run = next(runs, None)
            self.seconds += time.thread_time() - began
            if run is None:
                return
            yield run


def write_values(path: Path, stored: str, rows: int) -> None:
    """Write one tensor's random values, finite in any type, to be read as all of them."""
    import numpy as np

    count = rows * COLUMNS
    random = np.random.default_rng(0)
    if stored == "BF16":
        bits = random.integers(0, 1 << 16, count, dtype=np.uint16)
        values: Any = (bits & 0x81FF) | HALF_OF_ONE
    else:
        kinds = {"F16": "float16", "F32": "float32", "F64": "float64"}
        values = (random.standard_normal(count, dtype=np.float32) * 0.02).astype(kinds[stored])
    path.write_bytes(values.tobytes())


def sample(task: Task, base: Path, rows: int) -> Group:
    """TENSORS matrices that all lie in one file, and the plan of each file made of them."""
    shape = (rows, COLUMNS)
    names = [f"sample.{number}" for number in range(TENSORS)]
    tensors: dict[str, Any] = {
        name: StoredTensor(name, task.stored, shape, base, 0) for name in names
    }
    changes = {}
    if task.rank:
        adapter = AdapterSpec(base, {"peft_type": "LORA"}, ())
        a, b = Made("a", (task.rank, COLUMNS)), Made("b", (rows, task.rank))
        step = LoraSum(adapter, LoraPair("sample", a, b), "linear", 1.0, 1.0)
        changes = {name: Change(tensors[name], (step,), shape) for name in names}
    merge = MergePlan(Checkpoint(base, {}, tensors), dtype=task.dtype, changes=changes)
    merged = MergedTensors(merge)
    merged.is_in_blocks(names[0])  # an export tries this once, too: it is not timed
    kind = GGMLType.by_name("F32")
    slots = tuple(Slot(name, shape, kind, Leaf(name)) for name in names)
    plans = [
        plan_sample(task, number, base.with_name(f"file-{number}"), dict.fromkeys(names, shape))
        for number in range(len(task.targets))
    ]
    return Group(plans, slots, merged.read, merged.row_blocks)


def plan_sample(
    task: Task, number: int, path: Path, shapes: dict[str, tuple[int, ...]]
) -> GGUFPlan:
    """The plan of one file of the sample."""
    import numpy as np

    target = task.targets[number]
    types = dict.fromkeys(shapes, GGMLType.by_name(target.type))
    plan = GGUFPlan(path, target.type, b"", types, lay_out(0, types, shapes), {})
    if target.round_to:
        plan = replace(plan, round_to=dict.fromkeys(shapes, GGMLType.by_name(target.round_to)))
    if target.weighted:
        vectors = np.linspace(0.5, 1.5, COLUMNS, dtype=np.float32).reshape(1, -1)
        rows = math.prod(next(iter(shapes.values()))[:-1])
        weights = dict.fromkeys(shapes, Importance(vectors, rows))
        plan = replace(plan, importance=weights)
    return plan


def writer_into(plan: GGUFPlan, file: BinaryIO, quantizer: Quantizer, pool: Pool) -> FileWriter:
    """A writer into an open file, which is not synced."""
    item = Unfinished(plan.path, plan.layout.size, {})
    return FileWriter(plan, Journal(item, file, file, set()), quantizer, pool)
