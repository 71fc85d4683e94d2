"""The tokens of one level of the trees, and llama.cpp's batch of some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from runtime.scoring.log_softmax import Reduced
from runtime.scoring.prefix_tree import Node
from runtime.scoring.scores import Scores, ScoringTask

if TYPE_CHECKING:
    import numpy as np


class Level:
    """The tokens of some nodes, as one list, and the values wanted of the logits after them."""

    def __init__(self, task: ScoringTask, nodes: Sequence[Node], place: dict[int, int]) -> None:
        """Lay out the nodes. place: the number of each text's sequence in the cache."""
        import numpy as np

        self.task, self.nodes = task, nodes
        spans = [(node, task.texts[node.members[0]]) for node in nodes]
        flat = [token for node, text in spans for token in text[node.start : node.stop]]
        self.tokens = np.array(flat, np.int32)
        self.positions = np.concatenate([np.arange(n.start, n.stop, dtype=np.int32) for n in nodes])
        lengths = [node.stop - node.start for node in nodes]
        self.places = np.repeat([place[node.members[0]] for node in nodes], lengths)
        self.wanted = np.zeros(len(self.tokens), np.int8)
        self.starts: list[int] = []
        """The place in its text of each node's first wanted row."""
        rows: list[int] = []
        tokens: list[int] = []
        begun = row = 0
        for node, text in spans:
            start = max(node.start, min(task.first[n] for n in node.members) - 1)
            self.starts.append(min(start, node.stop))
            count = node.stop - self.starts[-1]
            begun += node.stop - node.start
            self.wanted[begun - count : begun] = 1
            if count:
                rows.extend(range(row, row + count - 1))
                tokens.extend(text[start + 1 : node.stop])
                ends = self.following(node)
                rows.extend([row + count - 1] * len(ends))
                tokens.extend(task.texts[number][node.stop] for number in ends)
            row += count
        self.wanted_rows, self.wanted_tokens = np.array(rows, np.int64), np.array(tokens, np.int64)

    def following(self, node: Node) -> list[int]:
        """Members that have a token after the node."""
        return [n for n in node.members if len(self.task.texts[n]) > node.stop]

    def take(self, parts: Iterator[Reduced], found: Sequence[Scores]) -> None:
        """Write the computed values into each text's scores."""
        import numpy as np

        done = list(parts)
        if not done:
            return
        values = np.concatenate([part.values for part in done])
        ids = np.concatenate([part.top_ids for part in done])
        tops = np.concatenate([part.top_values for part in done])
        row = value = 0
        for node, start in zip(self.nodes, self.starts, strict=True):
            count = node.stop - start
            if not count:
                continue
            for number in node.members:
                scores = found[number]
                scores.logprobs[start + 1 : node.stop] = values[value : value + count - 1]
                scores.top_ids[start + 1 : node.stop + 1] = ids[row : row + count]
                scores.top_logprobs[start + 1 : node.stop + 1] = tops[row : row + count]
            value += count - 1
            for number in self.following(node):
                found[number].logprobs[node.stop] = values[value]
                value += 1
            row += count


class Batch:
    """A llama_batch whose memory is numpy's arrays."""

    def __init__(self, lib: Any, size: int) -> None:
        """Make room for `size` tokens, each of one sequence."""
        import numpy as np

        self.size = size
        self.tokens, self.positions, self.places = (np.zeros(size, np.int32) for _ in range(3))
        self.counts, self.wanted = np.ones(size, np.int32), np.zeros(size, np.int8)
        self.pointers = self.places.ctypes.data + 4 * np.arange(size, dtype=np.uintp)
        kinds = {name: kind for name, kind, *_ in lib.llama_batch._fields_}
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "token": self.tokens, "pos": self.positions, "n_seq_id": self.counts,
            "seq_id": self.pointers, "logits": self.wanted,
        }  # fmt: skip
        self.struct = lib.llama_batch(
            n_tokens=0,
            **{name: array.ctypes.data_as(kinds[name]) for name, array in arrays.items()},
        )

    def fill(self, step: Level, part: slice) -> None:
        count = len(step.tokens[part])
        self.tokens[:count], self.positions[:count] = step.tokens[part], step.positions[part]
        self.places[:count], self.wanted[:count] = step.places[part], step.wanted[part]
        self.struct.n_tokens = count
