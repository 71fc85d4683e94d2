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

from exporter.merge.row_blocks import RowBlock, held_blocks

if TYPE_CHECKING:
    import torch

Read: TypeAlias = "Callable[[str], torch.Tensor]"
"""Returns a merged tensor by its name in the checkpoint."""

RowBlocks: TypeAlias = Callable[[str], Iterator[RowBlock]]
"""Returns a merged tensor by its name in the checkpoint, in blocks of its rows."""


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


def before_casts(node: Node) -> Node:
    """The node before its last steps, if these only change the type: to numpy, or to float32.

    The values are the same, in half of the memory. A step on 16-bit values whose only setting is
    float32 is a cast if it keeps the shape; a view as float32 would have half as many values.
    """
    import gguf
    import torch

    while isinstance(node, gguf.LazyBase) and node._args and not node._kwargs:  # noqa: SLF001
        below, *settings = node._args  # noqa: SLF001
        if not isinstance(getattr(below, "_meta", None), torch.Tensor):
            return node
        is_alike = tuple(below._meta.shape) == tuple(node._meta.shape)  # noqa: SLF001
        is_numpy = isinstance(node, gguf.LazyNumpyTensor) and not settings
        is_half = below._meta.dtype in (torch.float16, torch.bfloat16)  # noqa: SLF001
        is_cast = is_half and settings == [torch.float32]
        if node._data is not None or not is_alike or not (is_numpy or is_cast):  # noqa: SLF001
            return node
        node = below
    return node


def leaf_name(node: Node) -> str | None:
    """The merged tensor that a node is, without any step; None for others."""
    import gguf

    if isinstance(node, Leaf):
        return node.name
    arguments: tuple[Any, ...] = node._args if isinstance(node, gguf.LazyBase) else ()  # noqa: SLF001
    return arguments[0] if len(arguments) == 1 and isinstance(arguments[0], str) else None


def as_tensor(values: Any) -> torch.Tensor:
    """Values (…) of torch or numpy as a tensor of the same shape."""
    import numpy as np
    import torch

    if isinstance(values, torch.Tensor):
        return values
    return torch.from_numpy(np.require(values, requirements=("C", "W")))


def walk(node: Node, read: Callable[[str], Any], *, run: bool) -> Any:
    """Visit a node's steps from the leaves up; `run` computes them."""
    import gguf

    done: dict[int, Any] = {}

    def visit(node: Any) -> Any:
        if id(node) not in done:
            done[id(node)] = value(node)
        return done[id(node)]

    def value(node: Any) -> Any:
        if (name := leaf_name(node)) is not None:
            found = read(name)
            return found.to(node._meta.dtype) if run else None  # noqa: SLF001
        if node._data is not None:  # noqa: SLF001
            return node._data  # noqa: SLF001
        # gguf has no public way to run a chain twice
        ready = gguf.LazyBase._recurse_apply(node._args, visit)  # noqa: SLF001
        return node._func(*ready, **node._kwargs) if run else None  # noqa: SLF001

    if isinstance(node, Leaf):
        return read(node.name)
    if not isinstance(node, gguf.LazyBase):
        return node
    found = visit(node)
    done.clear()  # the two functions refer to each other, and would keep it until a collection
    return found


class SharedReads:
    """Evaluates nodes and reads a tensor that several of them share only once.

    A shared tensor, such as a fused weight from which three tensors are cut, is held from the first
    part that needs it to the last.
    """

    def __init__(
        self, nodes: Iterable[Node], read: Read, row_blocks: RowBlocks | None = None
    ) -> None:
        """nodes: all nodes that will be evaluated, in this order."""
        self.read = read
        self.row_blocks = row_blocks
        self.left = Counter(
            name for node in nodes for part in split_stack(node) for name in sources(part)
        )
        self.held: dict[str, torch.Tensor] = {}

    def blocks(self, node: Node) -> Iterator[RowBlock]:
        """A node's rows in blocks, in their own type. The merge's blocks are computed when they are
        used; where the steps do more than change the type, the values are computed whole at once,
        or expert by expert if the node stacks them.
        """
        for part in split_stack(node):
            plain = before_casts(part)
            name = leaf_name(plain)
            if self.row_blocks is None or name is None or self.left[name] > 1:
                yield from held_blocks(self.values(plain))
                continue
            for block in self.row_blocks(name):
                yield block if isinstance(plain, Leaf) else block.of_type(plain._meta.dtype)  # noqa: SLF001
            self.release({name})

    def parts(self, node: Node) -> Iterator[torch.Tensor]:
        """A node's values (…) in their own type: its experts one by one if it stacks them."""
        return (self.values(before_casts(part)) for part in split_stack(node))

    def values(self, node: Node) -> torch.Tensor:
        """A node's values (…), computed at once."""
        read = set[str]()
        found = as_tensor(evaluate(node, partial(self.shared, read)))
        self.release(read)
        return found

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
