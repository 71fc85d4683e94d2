"""Blocks Python code in a model's folder unless the user trusts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from exporter.core.errors import UnsupportedError
from exporter.core.on_import import Undo, on_import

DYNAMIC = "transformers.dynamic_module_utils"


@contextmanager
def no_code_run() -> Iterator[None]:
    """Keep transformers from running a folder's code, although the converter requests it.

    Every path to such code passes through the one function that fetches its file.
    Inside the block that function raises UnsupportedError.
    """
    with on_import(DYNAMIC, refuse_code):
        yield


def refuse_code(module: Any) -> Undo:
    """Replace the function that fetches code."""
    original = module.get_cached_module_file

    def refuse(folder: object, name: object, *_: object, **__: object) -> str:
        """Raise UnsupportedError for any code file."""
        raise UnsupportedError(
            f"`{folder}` needs custom Python code (`{name}`), which decant does not run",
            hint="read that code, and pass --trust-remote-code if you trust it",
        )

    module.get_cached_module_file = refuse

    def undo() -> None:
        module.get_cached_module_file = original

    return undo
