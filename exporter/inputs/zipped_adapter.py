"""Unpacks a zip that holds an adapter, once, into the cache."""

from __future__ import annotations

import hashlib
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path

from exporter.core.atomic_file import explained, free_bytes, make_folder
from exporter.core.errors import AdapterError, SpaceError
from exporter.core.events import Report, Step
from exporter.core.paths import size_text

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst", ".7z", ".rar")
"""Endings of archives that decant does not unpack; a hint names them."""
KEPT = (".json", ".safetensors", ".bin", ".pt", ".gguf", ".jinja", ".txt", ".model", ".yaml", ".md")
LEFT_OUT = ("__MACOSX", ".")
"""Start of the names that macOS adds."""
DAMAGE = (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, RuntimeError)
AGAIN = "download or copy it again, or unpack it yourself and name the folder"


def zip_above(place: Path) -> Path | None:
    """The zip file that `place` is or lies in: run.zip, run.zip/checkpoint-50."""
    return next(
        (at for at in (place, *place.parents) if at.suffix == ".zip" and at.is_file()), None
    )


def unpacked(path: Path, *, report: Report) -> Path:
    """The folder of an unpacked zip, created once and kept in the cache.

    Raises AdapterError for a damaged or encrypted zip and for unsafe names in it, SpaceError if it
    does not fit on the disk.
    """
    from exporter.llamacpp.toolchain import cache_folder

    state = path.stat()
    facts = f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
    home = cache_folder() / "unpacked" / hashlib.sha256(facts.encode()).hexdigest()[:32]
    folder = home / path.stem
    if not folder.exists():
        report(Step(f"unpacking {path.name}"))
        try:
            unpack(path, folder)
        except DAMAGE as error:
            raise AdapterError(f"`{path}` cannot be unpacked: {error}", hint=AGAIN) from error
    # most zips contain one folder, or the whole path of it
    while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
        folder = inside[0]
    return folder


def unpack(path: Path, folder: Path) -> None:
    """Unpack into a temporary folder that is then renamed to `folder`. Raises SpaceError."""
    make_folder(folder.parent)
    with (
        zipfile.ZipFile(path) as archive,
        explained(folder),
        tempfile.TemporaryDirectory(dir=folder.parent) as partial,
    ):
        members = [member for member in archive.infolist() if is_wanted(member)]
        needed = sum(member.file_size for member in members)
        if needed > free_bytes(folder.parent):
            raise SpaceError(
                f"`{path}` unpacks to {size_text(needed)}, more than is free on `{folder.parent}`",
                hint="free some space, or unpack it on another disk and name the folder",
            )
        target = Path(partial) / folder.name
        target.mkdir()
        for member in members:
            refuse_unsafe(path, member)
            place = target / name_in(member)
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, place.open("xb") as file:
                shutil.copyfileobj(source, file)
        if not folder.exists():
            target.rename(folder)


def name_in(member: zipfile.ZipInfo) -> str:
    """A member's path; some programs on Windows write it with backslashes."""
    return member.filename.replace("\\", "/")


def is_wanted(member: zipfile.ZipInfo) -> bool:
    """Whether a member may belong to an adapter or its tokenizer."""
    parts = Path(name_in(member)).parts
    return (
        not name_in(member).endswith("/")
        and member.filename.endswith(KEPT)
        and not any(part.startswith(LEFT_OUT) and part != ".." for part in parts)
    )


def refuse_unsafe(path: Path, member: zipfile.ZipInfo) -> None:
    """Raise AdapterError for a link, and for a name that leaves the folder."""
    name = Path(name_in(member))
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if is_link or name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
        raise AdapterError(
            f"`{path}` holds {member.filename!r}, which lies outside of it or is a link",
            hint="unpack it yourself if you trust it, and name the folder",
        )
