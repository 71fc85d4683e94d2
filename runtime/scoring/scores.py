"""Requests for the scores of texts, and a model's scores of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from runtime.scoring.prefix_tree import Tokens


@dataclass(frozen=True, slots=True)
class Scores:
    """A model's scores of one text."""

    logprobs: np.ndarray[Any, Any]
    """(tokens,) float64: each token's log-probability after those before it; nan where it was not
    asked for, and for the first token of a text, which follows nothing."""
    top_ids: np.ndarray[Any, Any]
    """(tokens + 1, top) int32: the likeliest tokens at each place, -1 where not asked for. The last
    row is for the token after the text."""
    top_logprobs: np.ndarray[Any, Any]
    """(tokens + 1, top) float64."""


@dataclass(frozen=True, slots=True)
class ScoringTask:
    """A request for the scores of some texts."""

    texts: Sequence[Tokens]
    first: Sequence[int]
    """For each text, the place of the first wanted log-probability; at least 1."""
    top: int = 0
    """How many of the likeliest tokens are wanted at each place."""
    wants_next: bool = False
    """Whether the place after the last token is wanted, too."""
    take: Callable[[np.ndarray[Any, Any]], None] | None = None
    """For a single text: it is called with the logits of the wanted places, some rows at a time, in
    their order; the next step overwrites them."""

    @property
    def computed(self) -> list[Tokens]:
        """The tokens that the model reads: not the last, unless the next one is wanted."""
        return [text if self.wants_next else text[:-1] for text in self.texts]


def empty_scores(length: int, top: int) -> Scores:
    import numpy as np

    return Scores(
        np.full(length, np.nan),
        np.full((length + 1, top), -1, np.int32),
        np.full((length + 1, top), np.nan),
    )


def as_array(pointer: Any, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """llama.cpp's own floats as (rows, columns), not copied: the next step changes them."""
    import numpy as np

    found: np.ndarray[Any, Any] = np.ctypeslib.as_array(pointer, shape)
    return found
