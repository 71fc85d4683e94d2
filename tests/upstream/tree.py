"""Upstream's tests, taken out of the sdist that the build was made from."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from vendor.build import cache_root, read_recipe
from vendor.fetch import fetch_sdist
from vendor.report import silent

WANTED = ("tools/server/tests/", "models/templates/", "tools/mtmd/test-1.jpeg")
"""Below llama.cpp's root: the tests, the chat templates they name, and a picture."""


def unpack_tests(folder: Path) -> Path:
    """The folder of upstream's tests, below `folder`, in the places where they look for things."""
    recipe = read_recipe()
    sdist = fetch_sdist(recipe, cache_root(os.environ), env=os.environ, report=silent)
    root = f"{recipe.top}/{recipe.cmake_root}"
    wanted = tuple(f"{root}/{place}" for place in WANTED)
    with tarfile.open(sdist, mode="r|gz") as archive:
        archive.extraction_filter = tarfile.data_filter
        for member in archive:
            if member.name.startswith(wanted):
                archive.extract(member, folder)
    tests = folder / root / "tools" / "server" / "tests"
    (tests / "tmp").mkdir()
    return tests
