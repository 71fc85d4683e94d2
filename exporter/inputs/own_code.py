"""Python code in a model's folder, which is run for nobody who has not read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from exporter.core.errors import UnsupportedError
from exporter.core.import_hooks import Undo, when_imported


@contextmanager
def no_code_run() -> Iterator[None]:
    """Keep transformers from running a folder's own code, which the converter asks it to do.

    Every way to such code leads through the one function that fetches its file.
    """
    with when_imported("transformers.dynamic_module_utils", refuse_code):
        yield


def refuse_code(dynamic_module_utils: Any) -> Undo:
    original = dynamic_module_utils.get_cached_module_file

    def refuse(folder: object, name: object, *_: object, **__: object) -> str:
        raise UnsupportedError(
            f"`{folder}` asks for Python code of its own (`{name}`), which is not run",
            hint="read that code, and pass --trust-remote-code if you trust it",
        )

    def undo() -> None:
        dynamic_module_utils.get_cached_module_file = original

    dynamic_module_utils.get_cached_module_file = refuse
    return undo
