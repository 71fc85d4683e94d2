"""How far a model's distributions over the tokens of a text are from another model's.

One model's distributions are kept in a file, two bytes for each token of the vocabulary at each
place; then the Kullback-Leibler divergence of the other model's from them is computed, place by
place. Only some places are in memory at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from typing_extensions import Self

from runtime.scoring.log_softmax import log_sum_exp

if TYPE_CHECKING:
    import numpy as np

STEPS = 10_000
"""Steps for 1 of the square root of -logprob: they are finer near 0, at large probabilities."""
MOST = (1 << 16) - 1  # uint16
LEAST_LOGPROB = -((MOST / STEPS) ** 2)
"""-42.9 nats: less likely tokens count as this likely, in both models."""
BLOCK = 1 << 17  # logits at once: in float64 they fit a processor's cache


@dataclass
class KeptFolder:
    """The files with one model's distributions, as many as there is room for."""

    path: Path
    room: int
    """The most bytes that all files may take."""
    used: int = field(init=False)

    def __post_init__(self) -> None:
        self.used = sum(file.stat().st_size for file in self.path.iterdir())

    def writer(self, number: int, ids: Sequence[int], width: int) -> KeptWriter | None:
        """A writer for the distributions at the places of these tokens; None without room for them.

        width: the size of the vocabulary.
        """
        nbytes = 8 + 4 * len(ids) + 2 * len(ids) * width
        if self.used + nbytes > self.room:
            return None
        self.used += nbytes
        return KeptWriter(self.path / str(number), ids, width)

    def reader(self, number: int, ids: Sequence[int], width: int) -> KeptReader | None:
        """A reader of a text's distributions; None if none are kept, or those of other tokens."""
        path = self.path / str(number)
        if not path.exists():
            return None
        reader = KeptReader(path)
        if reader.ids == list(ids) and reader.width == width:
            return reader
        reader.file.close()
        return None


class KeptWriter:
    """Writes the distributions of one text in the order of its tokens.

    A full disk ends the writing, not the request: then nothing is kept.
    """

    def __init__(self, path: Path, ids: Sequence[int], width: int) -> None:
        import numpy as np

        self.path, self.partial = path, path.with_suffix(".partial")
        self.is_whole = True
        self.file: IO[bytes] = self.partial.open("wb", buffering=0)
        self.file.write(np.array([len(ids), width, *ids], np.int32).tobytes())

    def __enter__(self) -> Self:
        return self

    def take(self, logits: np.ndarray[Any, Any]) -> None:
        """Keep the distributions of some places' logits, (rows, vocabulary) float32."""
        for block in blocks(logits):
            if not self.is_whole:
                return
            kept = packed(logprobs(block)).tobytes()
            try:
                self.is_whole = self.file.write(kept) == len(kept)
            except OSError:
                self.is_whole = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()
        if error is None and self.is_whole:
            self.partial.rename(self.path)
        else:
            self.partial.unlink()


class KeptReader:
    """Computes the divergences from one text's kept distributions, in the order of its tokens."""

    def __init__(self, path: Path) -> None:
        import numpy as np

        self.file: IO[bytes] = path.open("rb")
        count, self.width = map(int, np.frombuffer(self.file.read(8), np.int32))
        self.ids: list[int] = np.frombuffer(self.file.read(4 * count), np.int32).tolist()
        self.found: list[float] = []
        """The divergence at each place, in nats."""

    def __enter__(self) -> Self:
        return self

    def take(self, logits: np.ndarray[Any, Any]) -> None:
        """Compare some places' logits, (rows, vocabulary) float32."""
        import numpy as np

        for block in blocks(logits):
            kept = np.frombuffer(self.file.read(2 * block.size), np.uint16)
            self.found += divergences(unpacked(kept.reshape(block.shape)), logprobs(block))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()


def blocks(logits: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """The rows, some at a time: each block (rows, vocabulary)."""
    step = max(1, BLOCK // logits.shape[1])
    return [logits[start : start + step] for start in range(0, len(logits), step)]


def logprobs(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Log-probabilities of logits, at least LEAST_LOGPROB: (rows, vocabulary) float32 → float64."""
    import numpy as np

    found: np.ndarray[Any, Any] = logits - log_sum_exp(logits)[:, None]
    np.maximum(found, LEAST_LOGPROB, out=found)
    return found


def packed(logprobs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Log-probabilities in two bytes each: (rows, vocabulary) float64 → uint16."""
    import numpy as np

    roots = np.sqrt(np.maximum(-logprobs, 0))
    found: np.ndarray[Any, Any] = np.minimum(np.rint(roots * STEPS), MOST).astype(np.uint16)
    return found


def unpacked(kept: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Log-probabilities whose probabilities sum to 1: (rows, vocabulary) uint16 → float64."""
    import numpy as np

    found: np.ndarray[Any, Any] = -((kept / STEPS) ** 2)
    found -= np.log(np.exp(found).sum(axis=1))[:, None]
    return found


def divergences(theirs: np.ndarray[Any, Any], ours: np.ndarray[Any, Any]) -> list[float]:
    """KL(theirs ‖ ours) of each row, at least 0: both (rows, vocabulary), log-probabilities."""
    import numpy as np

    found = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
    return [max(0.0, float(one)) for one in found]
