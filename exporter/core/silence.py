"""Keeps the training libraries quiet: no output, and one thread where cores are busy."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from exporter.core.on_import import Undo, on_import


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppress warnings, progress bars and log lines of transformers and peft in the block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with on_import("transformers.utils.logging", silenced):
            yield


def silenced(logging: Any) -> Undo:
    """Silence the module transformers.utils.logging; returns the way back."""
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    def undo() -> None:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()

    return undo


@contextmanager
def no_collection() -> Iterator[None]:
    """Pause garbage collection inside the block.

    Loading a vocabulary creates hundreds of thousands of live strings; scanning them again and
    again takes longer than reading the file.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread inside the block.

    Its threads spin while they wait for each other. On cores that also quantize, the second thread
    costs up to ten times what it saves.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_numpy_thread() -> None:
    """Limit numpy's products to one thread, unless the user has chosen a number.

    Its threads spin for longer than a verification's small products take. numpy reads the number
    when it is imported.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
