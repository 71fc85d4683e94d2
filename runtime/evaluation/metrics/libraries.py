"""The libraries of metrics, which are optional and imported when a metric is computed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from exporter.core.errors import InputError

HINT = "pip install 'decant-llm[eval]'"


def is_installed(module: str) -> bool:
    """Whether a library can be imported; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def library(module: str) -> Any:  # most of them have no types
    """A module of a library. Raises InputError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(f"the Python package {package} is not installed", hint=HINT) from error


@contextmanager
def without(*modules: str) -> Iterator[None]:
    """Have imports inside the block find none of these modules, unless they are loaded already.

    nltk, which rouge-score imports for a stemmer, loads SciPy and scikit-learn where they are
    installed: 95 MB and 3 s for nothing that is used here.
    """
    hidden: dict[str, Any] = {name: None for name in modules if name not in sys.modules}
    sys.modules.update(hidden)
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
