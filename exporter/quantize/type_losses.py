"""Measures the loss of every tensor in each candidate type, on a sample of its rows.

The loss is the squared error that llama.cpp's quantizers minimise: each input's error is weighted
by its importance. It is divided by the tensor's own squared values with the same weights, so that
it is the relative error of the tensor's outputs (HIGGS, arXiv 2411.17525, calls it t²).

An error that undoes the adapters' change costs more than one in any other direction: training chose
that direction for its effect. Where the base lies on a 4-bit grid, such a type swallows the change.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from exporter.convert.lazy_graph import Read, SharedReads, sources
from exporter.core.events import Progress, Report, silent
from exporter.core.ggml_types import GGMLType
from exporter.quantize.imatrix import Importance

if TYPE_CHECKING:
    import numpy as np
    import torch

    from exporter.convert.gguf_layout import Slot
    from exporter.quantize.quantizer import Quantizer

SHARE, FEWEST, MOST = 16, 1 << 13, 1 << 16
"""One value in SHARE of a tensor is quantized to each candidate: FEWEST to MOST values."""
Losses: TypeAlias = "dict[str, dict[GGMLType, float]]"
"""Tensor -> candidate type -> relative squared error of the tensor's outputs."""
UNDONE = 5.0
"""Extra cost of the part of an error that undoes the adapters' change. Leaving out the demo's
adapter costs 6 times the divergence of an equally large error by Q4_K_M or Q3_K_M.
"""


@dataclass(frozen=True, slots=True)
class Weights:
    """Readers of the merged tensors and of the base's."""

    read: Read
    before: Read | None = None
    """Returns the base's tensor in place of a merged one."""
    changed: Container[str] = ()
    """The tensors that `before` has."""

    def changes(self, slot: Slot) -> bool:
        """Whether adapters change the slot, and the base has all tensors that it is made of."""
        names = sources(slot.values)
        return self.before is not None and bool(names) and all(n in self.changed for n in names)


@dataclass(frozen=True, slots=True)
class Sample:
    """Some rows of a tensor that share a vector of importance."""

    rows: np.ndarray[Any, Any]
    """(n, columns) in contiguous float32."""
    weights: np.ndarray[Any, Any] | None
    """The importance (columns,) in float32; None if it was not measured."""
    before: np.ndarray[Any, Any] | None = None
    """The base's rows, of the same shape, of a tensor that an adapter changes."""


def measure_losses(
    slots: Sequence[Slot],
    weights: Weights,
    candidates: Mapping[str, Sequence[GGMLType]],
    importance: Mapping[str, Importance],
    quantizer: Quantizer,
    *,
    threads: int,
    report: Report = silent,
) -> Losses:
    """The losses of all tensors that have candidates, in the slots' order."""
    wanted = [slot for slot in slots if len(candidates.get(slot.name, ())) > 1]
    total = sum(slot.type.nbytes(slot.shape) for slot in wanted)
    reads, done = SharedReads((slot.values for slot in wanted), weights.read), 0
    changed = [slot for slot in wanted if weights.changes(slot)]
    base = SharedReads((slot.values for slot in changed), weights.before or weights.read)
    names = {slot.name for slot in changed}
    found: Losses = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="measure") as pool:
        for slot in wanted:
            samples = list(sampled(slot, reads.parts(slot.values), importance.get(slot.name)))
            if slot.name in names:
                befores = sampled(slot, base.parts(slot.values), importance.get(slot.name))
                pairs = zip(samples, befores, strict=True)
                samples = [replace(one, before=before.rows) for one, before in pairs]
            kinds = candidates[slot.name]
            found[slot.name] = dict(
                zip(kinds, pool.map(lambda k, s=samples: loss(s, k, quantizer), kinds), strict=True)
            )
            done += slot.type.nbytes(slot.shape)
            report(Progress("choosing types", done, total, "bytes"))
    return found


def sampled(
    slot: Slot, parts: Iterable[torch.Tensor], importance: Importance | None
) -> Iterator[Sample]:
    """Evenly spaced rows of a slot's parts (…, columns), of every expert."""
    columns, n_values = slot.shape[-1], math.prod(slot.shape)
    step = max(1, n_values // min(max(n_values // SHARE, FEWEST), MOST))
    first = 0
    for values in parts:
        rows = values.reshape(-1, columns)
        each = importance.rows_each if importance else rows.shape[0]
        for start in range(0, rows.shape[0], each):
            here = rows[start : start + each]
            chosen = here[min(step // 2, here.shape[0] - 1) :: step]
            weights = None
            if importance is not None:
                weights = importance.vectors[(first + start) // each]
            yield Sample(chosen.float().contiguous().numpy(), weights)
        first += rows.shape[0]


def loss(samples: Sequence[Sample], kind: GGMLType, quantizer: Quantizer) -> float:
    """The relative squared error of the samples in one type, with the extra cost UNDONE."""
    error = size = along = change = 0.0
    for sample in samples:
        weights = sample.weights
        ones = Importance(weights[None], len(sample.rows)) if weights is not None else None
        packed = quantizer.quantize(sample.rows, kind, ones)
        lost = quantizer.dequantize(packed, kind, sample.rows.shape[1])
        lost -= sample.rows
        error += product(lost, lost, weights)
        size += product(sample.rows, sample.rows, weights)
        if sample.before is not None:
            changed = sample.rows - sample.before
            along += product(lost, changed, weights)
            change += product(changed, changed, weights)
    undone = along**2 / change if along < 0 < change else 0.0
    return (error + UNDONE * undone) / size if size > 0 else 0.0


def product(
    one: np.ndarray[Any, Any], other: np.ndarray[Any, Any], weights: np.ndarray[Any, Any] | None
) -> float:
    """The sum of the products of two arrays (n, columns), each column with its weight."""
    import numpy as np

    by_column = np.einsum("ij,ij->j", one, other)
    return float(by_column.sum() if weights is None else by_column @ weights)
