"""The files of a build: the source unpacked whole or not at all, the result pruned."""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from .recipe import Mend, Recipe
from .report import BuildError, BuildEvent, Report

LIBRARY = re.compile(r"lib(?P<name>[^.]+)\.(so|dylib)")


def unpack(sdist: Path, recipe: Recipe, source: Path, *, report: Report) -> None:
    """Unpack and mend `sdist` as the folder `source`, which appears only when it is complete."""
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
    for mend in recipe.mends:
        _apply(mend, top)
    top.rename(source)
    shutil.rmtree(partial)


def collect(built: Path, source: Path, finished: Path, recipe: Recipe) -> None:
    """Fill the folder `finished` with what a build is for; `built` and `source` stay whole.

    The programs of `built`, every library beside them, and the parts of `source` to keep.
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
    """The shared libraries in `folder` by bare name: `ggml-base` for `libggml-base.so`."""
    matches = [(LIBRARY.fullmatch(path.name), path) for path in sorted(folder.iterdir())]
    return {match["name"]: path for match, path in matches if match}


def _apply(mend: Mend, top: Path) -> None:
    path = top / mend.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(mend.find) != 1:
        raise BuildError(
            f"the mend {mend.name!r} finds {mend.find!r} {text.count(mend.find)} times"
            f" in `{mend.file}`, not once: it was written for another llama.cpp"
        )
    path.write_text(text.replace(mend.find, mend.put), encoding="utf-8")


def _copy(origin: Path, place: Path) -> None:
    if not origin.exists():
        raise BuildError(f"the source has no `{origin}`, which the recipe wants to keep")
    place.parent.mkdir(parents=True, exist_ok=True)
    if origin.is_dir():
        shutil.copytree(origin, place, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    else:
        shutil.copy2(origin, place)


def _check(finished: Path, recipe: Recipe) -> None:
    """Raise unless every tool and library of the recipe came out of the build."""
    there = libraries(finished / "bin")
    missing: Sequence[str] = [
        *(name for name in recipe.tools if not (finished / "bin" / name).is_file()),
        *(name for name in recipe.libraries if name not in there),
    ]
    if missing:
        raise BuildError(f"the build did not make: {', '.join(missing)}")
