"""Runs a function on a module when it is imported, if it ever is."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TypeAlias

Undo: TypeAlias = "Callable[[], None]"


@contextmanager
def when_imported(name: str, act: Callable[[ModuleType], Undo]) -> Iterator[None]:
    """Call `act` on a module when the block imports it, or at once if it is imported already.

    The function that `act` returns is called when the block ends.
    """
    undo: list[Undo] = []

    def changed(module: ModuleType) -> None:
        undo.append(act(module))

    finder = Finder(name, changed)
    if name in sys.modules:
        changed(sys.modules[name])
    else:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
        for each in undo:
            each()


class Finder(MetaPathFinder):
    """Finds one module as the other finders do, with a loader that calls `act` after loading."""

    def __init__(self, name: str, act: Callable[[ModuleType], None]) -> None:
        self.name, self.act = name, act

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target  # the others are asked by name
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = ActingLoader(spec.loader, self.act)
        return spec


class ActingLoader(Loader):
    """Loads a module with another loader, then calls `act`."""

    def __init__(self, loader: Loader, act: Callable[[ModuleType], None]) -> None:
        self.loader, self.act = loader, act

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.act(module)
