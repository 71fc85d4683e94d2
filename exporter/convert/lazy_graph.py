"""The converter's deferred tensors as a graph: what each is made of, and its values.

A node is one of gguf-py's lazy tensors: a step that is not run yet, its arguments other nodes. A
leaf asks for one of the merged tensors by name. gguf-py runs a node by keeping every step's
result in it; here a node is run without being changed, so that it may be run again, on other
values too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import torch

Read: TypeAlias = "Callable[[str], torch.Tensor]"
"""Gives a merged tensor by its name in the checkpoint."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A merged tensor as it is, where no converter stands between."""

    name: str


Node: TypeAlias = Any  # gguf.LazyBase or Leaf; a plain array where the converter made one itself


def sources(node: Node) -> tuple[str, ...]:
    """The merged tensors that a node is made of, in the order in which it asks for them.

    Tensors whose values the converter has used already are not among them.
    """
    names: dict[str, None] = {}

    def note(name: str) -> None:
        names[name] = None

    walk(node, note, run=False)
    return tuple(names)


def evaluate(node: Node, read: Read) -> Any:
    """A node's values, in its own shape and type. read: gives the leaves'."""
    return walk(node, read, run=True)


def split_stack(node: Node) -> list[Node]:
    """The experts that are stacked to get a node, where that is its last step; else the node."""
    import gguf
    import torch

    below = node._args[0] if isinstance(node, gguf.LazyBase) and node._args else None  # noqa: SLF001
    if getattr(below, "_func", None) is torch.stack:
        args, named = below._args, below._kwargs  # type: ignore[union-attr]  # noqa: SLF001
        if len(args) == 1 and isinstance(args[0], list | tuple) and named.get("dim", 0) == 0:
            return list(args[0])
    return [node]


def to_float32(values: Any) -> np.ndarray[Any, Any]:
    """The same values, of torch or numpy, as a contiguous float32 array of their shape."""
    import numpy as np
    import torch

    if isinstance(values, torch.Tensor):
        values = values.float().numpy()
    return np.ascontiguousarray(values, dtype=np.float32)


def walk(node: Node, read: Callable[[str], Any], *, run: bool) -> Any:
    """Go through a node's steps from its leaves on; `run` computes them."""
    import gguf

    done: dict[int, Any] = {}

    def visit(node: Any) -> Any:
        if id(node) not in done:
            done[id(node)] = value(node)
        return done[id(node)]

    def value(node: Any) -> Any:
        arguments = node._args  # noqa: SLF001 - gguf has no public way to run a chain twice
        if len(arguments) == 1 and isinstance(arguments[0], str):
            found = read(arguments[0])
            return found.to(node._meta.dtype) if run else None  # noqa: SLF001
        if node._data is not None:  # noqa: SLF001
            return node._data  # noqa: SLF001
        ready = gguf.LazyBase._recurse_apply(arguments, visit)  # noqa: SLF001
        return node._func(*ready, **node._kwargs) if run else None  # noqa: SLF001

    if isinstance(node, Leaf):
        return read(node.name)
    return visit(node) if isinstance(node, gguf.LazyBase) else node


class SharedReads:
    """Values of nodes, where a tensor that several of them are made of is read once.

    It is held from the first part that needs it to the last, such as a fused weight from which
    three tensors are cut.
    """

    def __init__(self, nodes: Iterable[Node], read: Read) -> None:
        """nodes: all that will be asked for, in that order."""
        self.read = read
        self.left = Counter(
            name for node in nodes for part in split_stack(node) for name in sources(part)
        )
        self.held: dict[str, torch.Tensor] = {}

    def parts(self, node: Node) -> Iterator[np.ndarray[Any, Any]]:
        """A node's values in float32: whole, or expert by expert where they are stacked."""
        for part in split_stack(node):
            yield to_float32(evaluate(part, self.shared))
            self.release(part)

    def shared(self, name: str) -> torch.Tensor:
        if name in self.held:
            return self.held[name]
        values = self.read(name)
        if self.left[name] > 1:
            self.held[name] = values
        return values

    def release(self, part: Node) -> None:
        for name in sources(part):
            self.left[name] -= 1
            if not self.left[name]:
                self.held.pop(name, None)
