"""Reduces rows of logits to some tokens' log-probabilities and to the likeliest tokens.

Sums are accumulated in float64. Rows are taken in blocks that fit a processor's cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

BLOCK = 1 << 17  # logits that are reduced at once: 512 KiB


@dataclass(frozen=True, slots=True)
class Reduced:
    """The values kept of some rows of logits."""

    values: np.ndarray[Any, Any]
    """(asked,) float64: the log-probabilities of the tokens asked for."""
    top_ids: np.ndarray[Any, Any]
    """(rows, top) int32: the likeliest tokens, likeliest first; equal ones by their ids."""
    top_values: np.ndarray[Any, Any]
    """(rows, top) float64: their log-probabilities."""


def reduced(
    logits: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], tokens: np.ndarray[Any, Any], top: int
) -> Reduced:
    """The log-probability of `tokens[i]` in row `rows[i]`, and each row's `top` likeliest tokens.

    logits: (rows, vocabulary) float32; rows: (asked,) in rising order; tokens: (asked,).
    """
    import numpy as np

    count, width = logits.shape
    values = np.empty(len(tokens), np.float64)
    top = min(top, width)
    top_ids, top_values = np.empty((count, top), np.int32), np.empty((count, top), np.float64)
    step = max(1, BLOCK // width)
    for start in range(0, count, step):
        block = logits[start : start + step]
        total = log_sum_exp(block)
        first, last = np.searchsorted(rows, (start, start + len(block)))
        here = rows[first:last] - start
        values[first:last] = block[here, tokens[first:last]] - total[here]
        if top:
            ids = likeliest(block, top)
            top_ids[start : start + len(block)] = ids
            chosen = np.take_along_axis(block, ids, axis=1)
            top_values[start : start + len(block)] = chosen - total[:, None]
    return Reduced(values, top_ids, top_values)


def log_sum_exp(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The logarithm of each row's sum of powers of e: (rows, vocabulary) → (rows,) float64."""
    import numpy as np

    peak = block.max(axis=1)
    parts = block - peak[:, None]
    np.exp(parts, out=parts)
    found: np.ndarray[Any, Any] = peak + np.log(parts.sum(axis=1, dtype=np.float64))
    return found


def likeliest(block: np.ndarray[Any, Any], top: int) -> np.ndarray[Any, Any]:
    """The ids of the `top` largest logits of each row, largest first: (rows, top)."""
    import numpy as np

    if top == 1:
        best: np.ndarray[Any, Any] = block.argmax(axis=1)[:, None]
        return best
    # all that reach the top'th largest are sorted, so that equals come by their ids
    bound = np.partition(block, -top, axis=1)[:, -top]
    found = np.empty((len(block), top), np.int64)
    for number, row in enumerate(block):
        reach = np.flatnonzero(row >= bound[number])
        found[number] = reach[np.argsort(-row[reach], kind="stable")][:top]
    return found
