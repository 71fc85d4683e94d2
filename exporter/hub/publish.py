"""The final places of files: the hub's cache, shared by all libraries, or a plain folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.core.atomic_file import free_bytes, make_folder
from exporter.core.errors import OutputError, SpaceError
from exporter.core.paths import size_text
from exporter.hub.partial_file import kept_bytes, put
from exporter.hub.pull_plan import Plan, PlannedFile
from exporter.hub.repo_refs import COMMIT
from exporter.hub.timeouts import Limits

READ = 1 << 20  # bytes per read
OWN = ".decant"  # decant's folder among the files: parts, and plans for offline use


@dataclass(frozen=True, slots=True)
class Place:
    """A repo's folder in the hub cache (blobs, snapshots, refs), or a folder of plain files."""

    root: Path
    is_cache: bool

    @property
    def own(self) -> Path:
        return self.root / OWN

    def folder(self, commit: str) -> Path:
        """The folder that the user sees, with the files under their names in the repo."""
        return self.root / "snapshots" / commit if self.is_cache else self.root

    def content(self, file: PlannedFile) -> Path:
        """The path that holds a file's bytes."""
        return self.root / "blobs" / file.etag if self.is_cache else self.root / file.path

    def has(self, file: PlannedFile, limits: Limits) -> bool:
        """Whether a file is complete.

        A large blob is not hashed again, since its name is its hash, unless a lock file has another
        hash of it. All other files are hashed.
        """
        path = self.content(file)
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        if self.is_cache and file.size > limits.small and not file.sha256:
            return True
        return has_hash(path, file)


def has_hash(path: Path, file: PlannedFile) -> bool:
    hasher = file.hasher()
    with path.open("rb") as content:
        while chunk := content.read(READ):
            hasher.update(chunk)
    return hasher.hexdigest() == file.etag


def check_place(place: Place, plan: Plan) -> None:
    """Raise OutputError before writing through a symlink or over a folder."""
    top = place.folder(plan.commit)
    for file in plan.files:
        path = top / file.path
        inner = [parent for parent in path.parents if parent.is_relative_to(top)]
        if place.is_cache:
            inner.append(place.root / "blobs")
        for folder in inner:
            if folder.is_symlink() and folder != place.root:
                raise in_the_way(folder, "is a link to another place")
            if folder.exists() and not folder.is_dir():
                raise in_the_way(folder, "is a file where a folder belongs")
        if path.is_symlink() and not place.is_cache:
            raise in_the_way(path, "is a link to another place")
        if path.is_symlink() and not leads_to_blobs(path, place.root):
            raise in_the_way(path, "is a link out of the cache")
        if path.is_dir():
            raise in_the_way(path, "is a folder where a file belongs")


def leads_to_blobs(link: Path, root: Path) -> bool:
    target = Path(os.path.normpath(link.parent / link.readlink()))
    return target.parent == Path(os.path.normpath(root / "blobs"))


def in_the_way(path: Path, what: str) -> OutputError:
    return OutputError(
        f"`{path}` {what}", hint="nothing was written; remove it, or use another folder"
    )


def check_space(
    place: Place,
    missing: Sequence[PlannedFile],
    limits: Limits,
    free: Callable[[Path], int] = free_bytes,
) -> None:
    """Raise SpaceError, before the first byte, when the missing bytes do not fit."""
    needed = sum(file.size - kept_bytes(file, place.own) for file in missing)
    available = free(place.root)
    if missing and needed + limits.margin > available:
        raise SpaceError(
            f"{size_text(needed)} must be downloaded, and `{place.root}` has room for"
            f" {size_text(max(0, available - limits.margin))}",
            hint="free some space, name another disk with HF_HOME, or fetch fewer files:"
            " decant pull REPO --include …",
        )


def prepare(place: Place) -> None:
    make_folder(place.own)
    if place.is_cache:
        make_folder(place.root / "blobs")


def link_snapshot(place: Place, plan: Plan) -> None:
    """Create the commit's folder of links, and the ref that points to it. All blobs must exist."""
    folder = place.folder(plan.commit)
    for file in plan.files:
        link = folder / file.path
        target = os.path.relpath(place.content(file), link.parent)
        if link.is_symlink() and os.readlink(link) == target:  # noqa: PTH115 - as text
            continue
        make_folder(link.parent)
        fresh = link.with_name(f".{os.getpid()}.decant-link")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(link)
    revision = plan.ref.revision
    if not COMMIT.fullmatch(revision):
        ref = place.root / "refs" / revision
        if not ref.is_file() or ref.read_text() != plan.commit:
            put(ref, plan.commit.encode(), place.own)
