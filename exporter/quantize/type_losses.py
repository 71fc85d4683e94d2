"""Measures what each candidate type loses of every tensor, on a sample of its rows.

The loss is the squared error that llama.cpp's quantizers minimise: each input's error is weighted
by its importance. It is divided by the tensor's own squared values with the same weights, so that
it is the relative error of the tensor's outputs (HIGGS, arXiv 2411.17525, calls it t²).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from exporter.convert.lazy_graph import Read, SharedReads
from exporter.core.events import Progress, Report, silent
from exporter.core.ggml_types import GGMLType
from exporter.quantize.imatrix import Importance

if TYPE_CHECKING:
    import numpy as np
    import torch

    from exporter.convert.gguf_layout import Slot
    from exporter.quantize.quantizer import Quantizer

SHARE, FEWEST, MOST = 16, 1 << 13, 1 << 16
"""Of a tensor one value in SHARE is quantized to each candidate, between FEWEST and MOST values."""
Losses: TypeAlias = "dict[str, dict[GGMLType, float]]"
"""Tensor -> candidate type -> relative squared error of the tensor's outputs."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Some rows of a tensor that share a vector of importance."""

    rows: np.ndarray[Any, Any]
    """(n, columns) in contiguous float32."""
    weights: np.ndarray[Any, Any] | None
    """(columns,) in float32, or None where no importance was measured."""


def measure_losses(
    slots: Sequence[Slot],
    read: Read,
    candidates: Mapping[str, Sequence[GGMLType]],
    importance: Mapping[str, Importance],
    quantizer: Quantizer,
    *,
    threads: int,
    report: Report = silent,
) -> Losses:
    """The losses of all tensors that have candidates, in the slots' order."""
    wanted = [slot for slot in slots if len(candidates.get(slot.name, ())) > 1]
    total = sum(math.prod(slot.shape) for slot in wanted)
    reads, done = SharedReads((slot.values for slot in wanted), read), 0
    found: Losses = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="measure") as pool:
        for slot in wanted:
            samples = list(sampled(slot, reads.parts(slot.values), importance.get(slot.name)))
            kinds = candidates[slot.name]
            found[slot.name] = dict(
                zip(kinds, pool.map(lambda k, s=samples: loss(s, k, quantizer), kinds), strict=True)
            )
            done += math.prod(slot.shape)
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
    """The relative squared error of the samples in one type."""
    import numpy as np

    error = size = 0.0
    for sample in samples:
        weights = sample.weights
        ones = Importance(weights[None], len(sample.rows)) if weights is not None else None
        packed = quantizer.quantize(sample.rows, kind, ones)
        lost = quantizer.dequantize(packed, kind, sample.rows.shape[1])
        lost -= sample.rows
        squares = (np.einsum("ij,ij->j", part, part) for part in (lost, sample.rows))
        of_error, of_values = (
            float(part.sum() if weights is None else part @ weights) for part in squares
        )
        error, size = error + of_error, size + of_values
    return error / size if size > 0 else 0.0
