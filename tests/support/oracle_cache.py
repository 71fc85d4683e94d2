"""Keeps the outputs of llama.cpp's own tools, so that the next test run need not make them.

An oracle does not depend on decant's code: its key is the contents of all its inputs, the build of
llama.cpp, the versions of the libraries that its converter imports, and its options.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from exporter.core.atomic_file import sha256_file
from exporter.llamacpp.toolchain import Toolchain, cache_folder

LIBRARIES = ("numpy", "sentencepiece", "tokenizers", "torch", "transformers")
NBYTES_MAX = 1 << 29
"""Size of all kept files, in bytes; beyond it, the least recently used are deleted."""


def recall(
    output: Path, make: Callable[[], object], toolchain: Toolchain, source: Path, *options: object
) -> Path:
    """Call `make`, which writes `output`, or copy its earlier output for the same inputs.

    source: a file or a folder. options: the tool and its arguments, without paths, because a path
    differs from run to run, and the content of its file would not be part of the key.
    """
    kept = oracle_folder() / oracle_key(toolchain, source, options)
    with suppress(OSError):
        shutil.copyfile(kept, output)
        os.utime(kept)
        return output
    make()
    keep(output, kept)
    return output


def oracle_folder() -> Path:
    return cache_folder() / "oracles"


def oracle_key(toolchain: Toolchain, source: Path, options: Iterable[object]) -> str:
    """The name of a kept file: a hash of everything that the tool's output depends on."""
    files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
    contents = [f"{path.name} {sha256_file(path)}" for path in files]
    # the converter writes the folder's name into its metadata
    parts = [toolchain.folder.name, *versions(), source.name, *contents, *map(str, options)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def versions() -> tuple[str, ...]:
    """Python's and the libraries' versions; the fast tests run without some of the libraries."""
    found = [sys.version]
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return tuple(found)


def keep(output: Path, kept: Path) -> None:
    """Copy a file into the cache, whole or not at all, and drop the oldest beyond NBYTES_MAX."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=kept.parent, prefix=".part-", delete=False) as part:
        with output.open("rb") as made:
            shutil.copyfileobj(made, part)
    Path(part.name).replace(kept)
    total = 0
    for path, facts in newest_first(kept.parent):
        total += facts.st_size
        if total > NBYTES_MAX:
            path.unlink(missing_ok=True)


def newest_first(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in folder.iterdir():
        with suppress(OSError):  # another process has dropped it
            found.append((path, path.stat()))
    return sorted(found, key=lambda one: -one[1].st_mtime)
