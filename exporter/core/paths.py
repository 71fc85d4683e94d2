"""Where decant keeps things on this machine, and the words for sizes.

Without platformdirs: `vendor/store.py` finds the cache before any package is installed, and three
lines for the data folder beside it are not worth another dependency.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

FSDP = "pytorch_model_fsdp_0"
"""What accelerate calls the folder of a model's shards in a checkpoint."""


def store_folder(env: Mapping[str, str]) -> Path:
    """The exported models: DECANT_STORE, else in the user's data folder."""
    if chosen := env.get("DECANT_STORE"):
        return Path(chosen)
    return data_folder(env) / "models"


def data_folder(env: Mapping[str, str]) -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "decant"
    return Path(env.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "decant"


def model_name(folder: Path) -> str:
    """What a person calls a model's folder: in the hub cache its repo, not its commit.

    `checkpoint-50` alone says too little: it is called after its run. FSDP's shards are called
    as the checkpoint that they lie in.
    """
    folder = folder.resolve()
    if folder.name == FSDP:
        folder = folder.parent
    if is_checkpoint(folder):
        return f"{model_name(folder.parent)}-{folder.name}"
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is called as trainers call a checkpoint: checkpoint-50."""
    head, _, step = folder.name.partition("-")
    return head == "checkpoint" and step.isdecimal()


def size_text(nbytes: float) -> str:
    """A number of bytes for people: 583 MB, 1.17 GB."""
    for unit in ("bytes", "kB", "MB"):
        if nbytes < 1000:  # noqa: PLR2004 - SI units, as disks are sold
            return f"{nbytes:.0f} {unit}" if unit == "bytes" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"


def snapshot_of(folder: Path) -> Path:
    """The files of a repo's own folder in the hub's cache (models--ORG--NAME), else `folder`.

    Those of the branch main where that was downloaded, else of the only commit that is there.
    """
    snapshots = folder / "snapshots"
    if not folder.resolve().name.startswith("models--") or not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    commit = main.read_text().strip() if main.is_file() else ""
    if commit and (snapshots / commit).is_dir():
        return snapshots / commit
    commits = [child for child in snapshots.iterdir() if child.is_dir()]
    return commits[0] if len(commits) == 1 else folder


def repo_at(folder: Path) -> tuple[str, str]:
    """The repo and commit of a folder in the hub's cache, models--ORG--NAME/snapshots/COMMIT.

    Also of a folder below one; empty for any other.
    """
    absolute = folder.absolute()
    for place in (absolute, *absolute.parents):
        repo = place.parent.parent.name
        if place.parent.name == "snapshots" and repo.startswith("models--"):
            return repo.removeprefix("models--").replace("--", "/", 1), place.name
    return "", ""


def last_part(name: str) -> str:
    """The last part of a path, of any system, or of a repo's name."""
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]
