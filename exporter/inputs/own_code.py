"""Blocks Python code in a model's folder unless the user trusts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from exporter.core.errors import UnsupportedError
from exporter.core.import_hooks import Undo, when_imported


@contextmanager
def no_code_run() -> Iterator[None]:
    """Keep transformers from running a folder's code, which the converter asks it to do.

    Every path to such code passes through the one function that fetches its file.
    """
    with when_imported("transformers.dynamic_module_utils", refuse_code):
        yield


def refuse_code(dynamic_module_utils: Any) -> Undo:
    original = dynamic_module_utils.get_cached_module_file

    def refuse(folder: object, name: object, *_: object, **__: object) -> str:
        """Raise UnsupportedError for any code file."""
        raise UnsupportedError(
            f"`{folder}` needs custom Python code (`{name}`), which decant does not run",
            hint="read that code, and pass --trust-remote-code if you trust it",
        )

    def undo() -> None:
        dynamic_module_utils.get_cached_module_file = original

    dynamic_module_utils.get_cached_module_file = refuse
    return undo
