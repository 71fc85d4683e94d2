"""The converter's deferred tensors as a graph: their sources and their values.

A node is one of gguf-py's lazy tensors: a step that has not run, with other nodes as arguments. A
leaf requests a merged tensor by name. gguf-py runs a node by storing every step's result in it;
this module evaluates a node without changing it, so that it can run again, also with other values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import torch

Read: TypeAlias = "Callable[[str], torch.Tensor]"
"""Returns a merged tensor by its name in the checkpoint."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A merged tensor without any step of the converter."""

    name: str


Node: TypeAlias = Any  # gguf.LazyBase or Leaf; a plain array where the converter made one itself


def sources(node: Node) -> tuple[str, ...]:
    """The merged tensors that a node is made of, in the order of their requests.

    Tensors whose values the converter has already used are not included.
    """
    names: dict[str, None] = {}

    def note(name: str) -> None:
        names[name] = None

    walk(node, note, run=False)
    return tuple(names)


def evaluate(node: Node, read: Read) -> Any:
    """Compute a node's values, in its shape and type. read: returns the leaves' values."""
    return walk(node, read, run=True)


def split_stack(node: Node) -> list[Node]:
    """The experts that a node's last step stacks; otherwise the node itself."""
    import gguf
    import torch

    below = node._args[0] if isinstance(node, gguf.LazyBase) and node._args else None  # noqa: SLF001
    if getattr(below, "_func", None) is torch.stack:
        args, named = below._args, below._kwargs  # type: ignore[union-attr]  # noqa: SLF001
        if len(args) == 1 and isinstance(args[0], list | tuple) and named.get("dim", 0) == 0:
            return list(args[0])
    return [node]


def to_float32(values: Any) -> np.ndarray[Any, Any]:
    """Convert values (…) of torch or numpy to a contiguous float32 array of the same shape."""
    import numpy as np
    import torch

    if isinstance(values, torch.Tensor):
        values = values.float().numpy()
    return np.ascontiguousarray(values, dtype=np.float32)


def walk(node: Node, read: Callable[[str], Any], *, run: bool) -> Any:
    """Visit a node's steps from the leaves up; `run` computes them."""
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
    """Evaluates nodes and reads a tensor that several of them share only once.

    A shared tensor, such as a fused weight from which three tensors are cut, is held from the first
    part that needs it to the last.
    """

    def __init__(self, nodes: Iterable[Node], read: Read) -> None:
        """nodes: all nodes that will be evaluated, in this order."""
        self.read = read
        self.left = Counter(
            name for node in nodes for part in split_stack(node) for name in sources(part)
        )
        self.held: dict[str, torch.Tensor] = {}

    def parts(self, node: Node) -> Iterator[np.ndarray[Any, Any]]:
        """A node's values in float32: its experts one by one if it stacks them, else one array."""
        for part in split_stack(node):
            read = set[str]()
            yield to_float32(evaluate(part, partial(self.shared, read)))
            self.release(read)

    def shared(self, read: set[str], name: str) -> torch.Tensor:
        """The values of a leaf, (rows, columns) or any shape; `read` collects the names."""
        read.add(name)
        if name in self.held:
            return self.held[name]
        values = self.read(name)
        if self.left[name] > 1:
            self.held[name] = values
        return values

    def release(self, names: set[str]) -> None:
        """Count one use of each tensor, and drop those that no later part needs."""
        for name in names:
            self.left[name] -= 1
            if not self.left[name]:
                self.held.pop(name, None)
