"""Python code in a model's folder, which is run for nobody who has not read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from exporter.core.errors import UnsupportedError


@contextmanager
def no_code_run() -> Iterator[None]:
    """Keep transformers from running a folder's own code, which the converter asks it to do.

    Every way to such code leads through the one function that fetches its file.
    Raises UnsupportedError inside the block when it is called.
    """
    from transformers import dynamic_module_utils

    original = dynamic_module_utils.get_cached_module_file

    def refuse(folder: object, name: object, *_: object, **__: object) -> str:
        raise UnsupportedError(
            f"`{folder}` asks for Python code of its own (`{name}`), which is not run",
            hint="read that code, and pass --trust-remote-code if you trust it",
        )

    dynamic_module_utils.get_cached_module_file = refuse
    try:
        yield
    finally:
        dynamic_module_utils.get_cached_module_file = original
