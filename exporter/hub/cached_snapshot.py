"""Finds out without a network which files of a revision the hub's cache has.

The file list comes from decant's saved plan of the commit, or from the listing that huggingface_hub
keeps. Without either, the list has the snapshot's files, the files that their indexes name, and the
other parts of split files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from exporter.core.errors import InputError
from exporter.hub.lockfile import NAME, read_plan
from exporter.hub.publish import Place
from exporter.hub.pull_plan import Plan, PlannedFile
from exporter.hub.repo_refs import COMMIT, Ref, unsafe
from exporter.hub.timeouts import Limits

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
CONFIGS = ("config.json", "adapter_config.json")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.[a-z]+$)")
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
LISTED, FOUND = ("the cache's list",), ("the cache",)


def cached_plan(ref: Ref, cache: Path, place: Place) -> Plan | None:
    """The files of a revision, some of which may be missing; None where the revision is unknown."""
    if not place.is_cache:
        return locked_plan(ref, place)
    commit = cached_commit(ref, place)
    if commit is None:
        return None
    own = place.own / f"{commit}.json"
    if own.is_file():
        with suppress(InputError):  # damaged: treated as absent
            return replace(read_plan(own), ref=ref)
    return listed_plan(ref, cache, commit) or found_plan(ref, place, commit)


def locked_plan(ref: Ref, place: Place) -> Plan | None:
    """The plan in a plain folder's lock file, if it is the same repo and revision."""
    path = place.root / NAME
    try:
        plan = read_plan(path) if path.is_file() else None
    except InputError:
        return None
    if plan is None or plan.ref.repo != ref.repo:
        return None
    is_same = ref.revision in (plan.ref.revision, plan.commit)
    return replace(plan, ref=ref) if is_same else None


def cached_commit(ref: Ref, place: Place) -> str | None:
    """The commit that a revision pointed to when it was last resolved."""
    if COMMIT.fullmatch(ref.revision):
        return ref.revision
    try:
        commit = (place.root / "refs" / ref.revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return commit if COMMIT.fullmatch(commit) else None


def listed_plan(ref: Ref, cache: Path, commit: str) -> Plan | None:
    """The plan from huggingface_hub's listing of the repo, if there is one."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        files = get_cached_repo_tree(
            ref.repo, repo_type=ref.repo_type, revision=commit, cache_dir=cache
        )
    except (CachedRepoTreeNotFoundError, OSError, ValueError):
        return None
    planned = tuple(
        PlannedFile(file.path, file.lfs.size, file.lfs.sha256)
        if file.lfs
        else PlannedFile(file.path, file.size, file.blob_id)
        for file in files
    )
    return Plan(ref, commit, planned, LISTED, is_reference=False)


def found_plan(ref: Ref, place: Place, commit: str) -> Plan | None:
    """The plan from a snapshot without a listing: its files and those that belong to them."""
    folder = place.folder(commit)
    paths = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    files = {file.path: file for file in (found_file(folder, path) for path in sorted(paths))}
    for name in shards_of(folder, tuple(files)):
        files.setdefault(name, PlannedFile(name, 0, ""))
    return Plan(ref, commit, tuple(files.values()), FOUND, is_reference=False) if files else None


def found_file(folder: Path, path: Path) -> PlannedFile:
    """A file of a snapshot; its hash is known if it is a link to a blob."""
    blob = Path(os.readlink(path)).name if path.is_symlink() else ""  # noqa: PTH115 - as text
    size = path.stat().st_size if path.exists() else 0
    return PlannedFile(
        path.relative_to(folder).as_posix(), size, blob if HASH.fullmatch(blob) else ""
    )


def is_here(place: Place, commit: str, file: PlannedFile, limits: Limits) -> bool:
    """Whether a file is complete: as a blob, or in the snapshot itself as in copied caches."""
    if file.etag and place.content(file).exists():
        return place.has(file, limits)
    path = place.folder(commit) / file.path
    return place.is_cache and path.is_file() and path.stat().st_size == file.size


def gap(place: Place, plan: Plan) -> str | None:
    """The sign that an unlisted snapshot is incomplete; None without one."""
    if plan.hashes_from != FOUND:
        return None
    names = [file.path for file in plan.files]
    if any(name.endswith(CONFIGS) for name in names) and not has_weights(names):
        return "it has no weights"
    parts = place.root.glob("blobs/*.incomplete")
    if any(not (path.parent / path.name.partition(".")[0]).exists() for path in parts):
        return "a download of it is unfinished"
    return None


def shards_of(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """The missing siblings of known files: shards of an index, parts of a split file."""
    for name in names:
        if match := SHARD.search(name):
            for number in range(1, int(match[2]) + 1):
                yield f"{name[: match.start()]}-{number:05}-of-{match[2]}{name[match.end() :]}"
        elif name.endswith(".index.json"):
            inside = PurePosixPath(name).parent
            yield from ((inside / shard).as_posix() for shard in shards_in(folder / name))


def shards_in(index: Path) -> set[str]:
    """The shards that an index of weights names; empty for any other file."""
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()
    return {shard for shard in shards if isinstance(shard, str) and not unsafe(shard)}


def has_weights(names: Iterable[str]) -> bool:
    return any(name.endswith(WEIGHTS) for name in names)
