"""Unpacks the source completely or not at all, and collects the result of a build."""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from .recipe import Recipe, SourcePatch
from .report import BuildError, BuildEvent, Report

LIBRARY = re.compile(r"lib(?P<name>[^.]+)\.(so|dylib)")


def unpack(sdist: Path, recipe: Recipe, source: Path, *, report: Report) -> None:
    """Unpack and patch `sdist` as the folder `source`, which appears once it is complete.

    Raises BuildError if the archive or a patch does not fit.
    """
    if source.exists():
        return
    partial = source.with_name(f"{source.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    nbytes = sdist.stat().st_size
    with sdist.open("rb") as raw, tarfile.open(fileobj=raw, mode="r|gz") as archive:
        if hasattr(tarfile, "data_filter"):  # since 3.10.12 and 3.11.4
            archive.extraction_filter = tarfile.data_filter
        for member in archive:
            archive.extract(member, partial)
            report(BuildEvent("unpack", f"unpacking {sdist.name}", raw.tell(), nbytes))
    report(BuildEvent("unpack", f"unpacking {sdist.name}", nbytes, nbytes))
    top = partial / recipe.top
    if not top.is_dir():
        raise BuildError(f"`{sdist}` does not hold the folder {recipe.top}")
    for patch in recipe.patches:
        _apply(patch, top)
    top.rename(source)
    shutil.rmtree(partial)


def collect(built: Path, source: Path, finished: Path, recipe: Recipe) -> None:
    """Copy the result of a build to the folder `finished`.

    These are the programs of `built`, every library beside them, and the recipe's parts of
    `source`. Raises BuildError if something is missing.
    """
    shutil.rmtree(finished, ignore_errors=True)
    target = finished / "bin"
    target.mkdir(parents=True)
    for path in sorted(built.iterdir()):
        if path.name in recipe.tools or path.name.startswith("lib"):
            shutil.copy2(path, target / path.name, follow_symlinks=False)
    for place, origin in recipe.keep.items():
        _copy(source / origin, finished / place)
    _check(finished, recipe)


def libraries(folder: Path) -> dict[str, Path]:
    """Return the shared libraries in `folder` by bare name: `ggml-base` for `libggml-base.so`."""
    matches = [(LIBRARY.fullmatch(path.name), path) for path in sorted(folder.iterdir())]
    return {match["name"]: path for match, path in matches if match}


def _apply(patch: SourcePatch, top: Path) -> None:
    path = top / patch.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(patch.find) != 1:
        raise BuildError(
            f"the patch {patch.name!r} finds {patch.find!r} {text.count(patch.find)} times"
            f" in `{patch.file}`, not once: it was written for another llama.cpp"
        )
    path.write_text(text.replace(patch.find, patch.put), encoding="utf-8")


def _copy(origin: Path, place: Path) -> None:
    if not origin.exists():
        raise BuildError(f"the source has no `{origin}`, which the recipe keeps")
    place.parent.mkdir(parents=True, exist_ok=True)
    if origin.is_dir():
        shutil.copytree(origin, place, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    else:
        shutil.copy2(origin, place)


def _check(finished: Path, recipe: Recipe) -> None:
    """Raise BuildError unless the build made every tool and library of the recipe."""
    there = libraries(finished / "bin")
    missing: Sequence[str] = [
        *(name for name in recipe.tools if not (finished / "bin" / name).is_file()),
        *(name for name in recipe.libraries if name not in there),
    ]
    if missing:
        raise BuildError(f"the build did not make: {', '.join(missing)}")
