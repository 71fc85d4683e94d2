"""Imports llama.cpp's own Python packages, `conversion` and `gguf`, from the build."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from exporter.core.events import Report, Warn
from exporter.llamacpp.toolchain import Toolchain

HARMLESS = (
    "Unknown RoPE type: default",
    "Unknown RoPE type: proportional",
    "Duplicated key name",
    "No handler for special token type",
    "Unknown separator token",
    "is not in MXFP4, performance may be degraded",
)
"""Parts of warnings that do not concern the result: transformers 5 spells out the type of plain
RoPE, a class writes a key again after its parent, padding and separator tokens have no handler, and
merged experts have 16 bits before they are quantized.
"""


@contextmanager
def imported(toolchain: Toolchain) -> Iterator[None]:
    """Make llama.cpp's `conversion` and the matching `gguf` importable, from the build alone."""
    for folder in (toolchain.source, toolchain.source / "gguf-py"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its warning concerns our threads
    yield


@contextmanager
def warnings_reported(report: Report) -> Iterator[None]:
    """Turn the converter's logged warnings into events; other log lines are dropped."""

    class Reporting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if not any(part in message for part in HARMLESS):
                report(Warn(f"llama.cpp's converter: {message}"))

    handler = Reporting(level=logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("hf-to-gguf", "gguf")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate
