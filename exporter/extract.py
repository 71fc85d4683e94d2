"""Extracts a LoRA from a full fine-tune: the truncated SVD of each matrix's change.

One matrix of each model is in memory at a time. The pair of a matrix is the best of its rank
(Eckart and Young): no other loses less of the change.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.core.atomic_file import atomic_write, free_bytes
from exporter.core.atomic_folder import atomic_folder, refuse_inputs, refuse_taken
from exporter.core.errors import CheckpointError, SpaceError
from exporter.core.events import Progress, Report, Step, silent
from exporter.core.paths import size_text
from exporter.extract_plan import ExtractPlan, Pair, plan_extraction
from exporter.formats.safetensors_folder import Shard, Stored
from exporter.inputs.checkpoint import Checkpoint
from exporter.inputs.lazy_tensor import read_tensor
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.result_files import TOKENIZER_FILES

if TYPE_CHECKING:
    import torch

MARKS = ("adapter_config.json",)
WEIGHTS = "adapter_model.safetensors"
WHOLE_SVD = 768  # rows or columns up to which the exact SVD takes less than a second
OVERSAMPLING = 16  # dimensions beyond the rank in the randomized SVD (Halko et al., 2011)
ITERATIONS = 4  # of the power method: the loss is within some per mille of the exact one
SEED = 0


@dataclass(frozen=True, slots=True)
class ExtractRequest:
    """The options of an extraction."""

    fine_tune: Path
    base: Path
    folder: Path
    """The new PEFT folder."""
    rank: int = 32
    base_name: str = ""
    """The base's name in the adapter's config; empty for `base` itself."""
    only_pairs: bool = False
    """Whether to drop norms, biases and a grown vocabulary, which a GGUF adapter cannot hold."""
    force: bool = False


@dataclass(frozen=True, slots=True)
class KeptChange:
    """The share of one matrix's change that its pair holds."""

    name: str
    change: float
    """Frobenius norm of the change."""
    lost: float
    """Frobenius norm of the part that the pair does not hold."""
    weight: float
    """Frobenius norm of the base's matrix."""

    @property
    def share(self) -> float:
        """The kept share of the change, by squared norms: 1 for all of it."""
        return kept_share((self,))


@dataclass(frozen=True, slots=True)
class Extracted:
    """A written adapter."""

    folder: Path
    rank: int
    nbytes: int
    """Size of its weights in bytes."""
    matrices: tuple[KeptChange, ...]
    left_out: tuple[str, ...]
    """Changed tensors that keep the base's values."""
    seconds: float

    @property
    def kept(self) -> float:
        """The share of all matrices' change that the adapter holds."""
        return kept_share(self.matrices)


def kept_share(matrices: Sequence[KeptChange]) -> float:
    total = sum(kept.change**2 for kept in matrices)
    return 1.0 - sum(kept.lost**2 for kept in matrices) / total if total else 1.0


def extract(request: ExtractRequest, *, report: Report = silent) -> Extracted:
    """Write the adapter that turns the base into the fine-tune, as closely as its rank allows.

    Matrices become LoRA pairs; norms, biases and a grown vocabulary are stored whole
    (modules_to_save). Raises CheckpointError if the two differ in architecture, OutputError if the
    folder is taken, SpaceError before any weight is read.
    """
    import torch

    started = time.monotonic()
    refuse_taken(request.folder, MARKS, force=request.force)
    refuse_inputs(request.folder, (request.fine_tune, request.base))
    report(Step("comparing the fine-tune with its base"))
    tuned, base = open_checkpoint(request.fine_tune), open_checkpoint(request.base)
    plan = plan_extraction(tuned, base, request.rank, only_pairs=request.only_pairs, report=report)
    shard = Shard(WEIGHTS, tuple(tensors_of(plan)))
    check_space(request.folder, shard.nbytes)
    settings = plan.settings(request.base_name or str(request.base))
    report(Step("decomposing the changes"))
    matrices: list[KeptChange] = []
    a = b = torch.empty(0, 0)
    with atomic_folder(
        request.folder, plan=json.dumps(settings), marks=MARKS, force=request.force, report=report
    ) as new:
        with atomic_write(new / WEIGHTS, force=True) as file:
            file.write(shard.header)
            for number, pair in enumerate(plan.pairs, 1):
                if pair.is_twin:  # the head of a tied embedding has the transposed matrices
                    a, b = b.T, a.T
                else:
                    a, b, kept = taken_apart(tuned, base, pair, plan.rank)
                    matrices.append(kept)
                for values in (a, b):
                    file.write(values.contiguous().numpy().data)
                report(Progress("taking apart", number, len(plan.pairs), "tensors"))
            for name in plan.replaced:
                file.write(read_tensor(tuned.tensors[name]).float().contiguous().numpy().data)
        for name, content in companions(tuned, settings):
            with atomic_write(new / name, force=True) as file:
                file.write(content)
    return Extracted(
        request.folder, plan.rank, shard.nbytes, tuple(matrices), plan.left_out,
        time.monotonic() - started,
    )  # fmt: skip


def tensors_of(plan: ExtractPlan) -> Iterator[Stored]:
    """Every tensor of the adapter's file, in its order."""
    for pair in plan.pairs:
        rows, columns = pair.shape
        for name, shape in zip(pair.keys, ((plan.rank, columns), (rows, plan.rank)), strict=True):
            yield stored(name, shape)
    for name, named in plan.replaced.items():
        yield stored(named, plan.shapes[name])


def stored(name: str, shape: tuple[int, ...]) -> Stored:
    return Stored(name, "F32", shape, 4 * math.prod(shape))


def taken_apart(
    tuned: Checkpoint, base: Checkpoint, pair: Pair, rank: int
) -> tuple[torch.Tensor, torch.Tensor, KeptChange]:
    """A (rank, columns), B (rows, rank), and the share of the change that they hold.

    Raises CheckpointError for values that are not finite.
    """
    import torch

    before = read_tensor(base.tensors[pair.source]).float()
    change = read_tensor(tuned.tensors[pair.source]).float() - before
    if not bool(torch.isfinite(change).all()):
        raise CheckpointError(
            f"`{pair.source}` holds values that are not finite", hint="was the training stable?"
        )
    weight = float(before.norm())
    del before
    if pair.transposed:
        change = change.T  # (rows, columns) of the pair
    a, b = low_rank(change, rank)
    size = float(change.norm())
    lost = float(torch.addmm(change, b, a, alpha=-1).norm())
    return a, b, KeptChange(pair.source, size, lost, weight)


def low_rank(change: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best pair of a rank: A (rank, columns) and B (rows, rank) with B @ A close to `change`.

    change: (rows, columns), float32. Each half contains the roots of the singular values, as after
    training. Ranks beyond the matrix's are zeros.
    """
    import torch

    rows, columns = change.shape
    most = min(rank, rows, columns)
    if min(rows, columns) <= max(WHOLE_SVD, 2 * rank):
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            u, s, v = torch.svd_lowrank(change, q=rank + OVERSAMPLING, niter=ITERATIONS)
        vh = v.T
    roots = s[:most].sqrt()
    a, b = torch.zeros(rank, columns), torch.zeros(rows, rank)
    a[:most] = roots[:, None] * vh[:most]
    b[:, :most] = u[:, :most] * roots
    return a, b


def check_space(folder: Path, needed: int) -> None:
    """Raise SpaceError if the adapter does not fit on the disk."""
    free = free_bytes(folder.absolute().parent)
    if needed > free:
        raise SpaceError(
            f"`{folder.parent}` has {size_text(free)} free, and the adapter needs"
            f" {size_text(needed)}",
            hint="free some space, name another disk with -o, or take a smaller --rank",
        )


def companions(tuned: Checkpoint, settings: dict[str, object]) -> Iterator[tuple[str, bytes]]:
    """adapter_config.json, and the fine-tune's tokenizer with its chat template."""
    yield "adapter_config.json", json.dumps(settings, indent=2).encode()
    for name in TOKENIZER_FILES:
        path = tuned.folder / name
        if path.is_file():
            yield name, path.read_bytes()


def as_gguf(extracted: Extracted, base: Path, path: Path, *, force: bool, report: Report) -> Path:
    """Write the extracted adapter as a GGUF adapter, too.

    Raises the errors of `export_lora`: UnsupportedError for an architecture without adapters.
    """
    from exporter.formats.gguf_lora import LoraRequest, export_lora
    from exporter.llamacpp.toolchain import find_toolchain

    request = LoraRequest(extracted.folder, base, path, force=force)
    return export_lora(request, find_toolchain(), report=report).path
