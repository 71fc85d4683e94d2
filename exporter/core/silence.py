"""Keeps the training libraries quiet: on the terminal, and on cores that others need."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No warnings, progress bars or log lines of transformers and peft inside the block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import logging

        before = logging.get_verbosity()
        bars = logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(before)
            if bars:
                logging.enable_progress_bar()


@contextmanager
def no_collection() -> Iterator[None]:
    """No search for garbage inside the block.

    While a vocabulary is read, its hundreds of thousands of texts are gone through again and
    again, which takes longer than to read them; none of them is garbage.
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
    """Keep torch to one thread inside the block.

    Its threads spin while they wait for one another. On cores that are busy with something
    else, such as quantizing, that cost up to ten times the time that a second thread saves.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
