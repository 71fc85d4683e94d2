"""Changes a module for the time of a block, without importing it before somebody needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

Undo = Callable[[], None]
Change = Callable[[Any], Undo]
"""Changes a module; returns a function that takes the change back."""


@contextmanager
def on_import(name: str, change: Change) -> Iterator[None]:
    """Apply `change` to the module inside the block: at once if it is imported, else after its
    import.
    """
    watch = Watch(name, change)
    module = sys.modules.get(name)
    if module is not None:
        watch.apply(module)
    else:
        sys.meta_path.insert(0, watch)
    try:
        yield
    finally:
        if watch in sys.meta_path:
            sys.meta_path.remove(watch)
        watch.undo()


class Watch(MetaPathFinder):
    """A finder that notices the import of one module."""

    def __init__(self, name: str, change: Change) -> None:
        self.name, self.change = name, change
        self.undo: Undo = do_nothing

    def apply(self, module: ModuleType) -> None:
        self.undo = self.change(module)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module as others do, with a loader that applies the change."""
        del path, target
        if name != self.name:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)  # so that the next finder finds it
        found = find_spec(name)
        if found is not None and found.loader is not None:
            found.loader = ChangedAfterwards(found.loader, self)
        return found


class ChangedAfterwards(Loader):
    """A module's loader that applies the change when the module is complete."""

    def __init__(self, loader: Loader, watch: Watch) -> None:
        self.loader, self.watch = loader, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.watch.apply(module)


def do_nothing() -> None:
    """The undoing of a change that was not made."""
