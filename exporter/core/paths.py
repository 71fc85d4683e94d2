"""Folders where decant keeps things on this machine, and sizes as text.

It does not use platformdirs: `vendor/store.py` finds the cache before any package is installed, and
three more lines for the data folder do not justify another dependency.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

FSDP = "pytorch_model_fsdp_0"
"""Name that accelerate gives the folder of a model's shards in a checkpoint."""


def store_folder(env: Mapping[str, str]) -> Path:
    """The folder of exported models: DECANT_STORE, else below the user's data folder."""
    if chosen := env.get("DECANT_STORE"):
        return Path(chosen)
    return data_folder(env) / "models"


def data_folder(env: Mapping[str, str]) -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "decant"
    return Path(env.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "decant"


def evaluations_folder(env: Mapping[str, str]) -> Path:
    """The folder of the reports of evaluations, and of the cache of outcomes."""
    return data_folder(env) / "evaluations"


def prompts_folder(env: Mapping[str, str]) -> Path:
    """The folder of what a server's engines have computed of their conversations."""
    return data_folder(env) / "prompts"


def chat_prompts_folder(env: Mapping[str, str]) -> Path:
    """The folder of what `decant chat` has computed of its conversations."""
    return prompts_folder(env) / "chat"


def tokenizers_folder(env: Mapping[str, str]) -> Path:
    """The folder of converted tokenizers, and of their verifications."""
    return data_folder(env) / "tokenizers"


def model_name(folder: Path) -> str:
    """The name to show for a model's folder: in the hub cache the repo's, not the commit's.

    A folder such as `checkpoint-50` gets its run's name in front. A folder of FSDP shards takes the
    name of its checkpoint.
    """
    folder = folder.resolve()
    if folder.name == FSDP:
        folder = folder.parent
    if is_checkpoint(folder):
        return f"{model_name(folder.parent)}-{folder.name}"
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def run_of(named: Path, found: Path) -> Path | None:
    """The training run that was named, if what was found is a checkpoint in it, else None."""
    checkpoint = found.parent if found.name == FSDP else found
    return named if is_checkpoint(checkpoint) and checkpoint.parent == named else None


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder has a trainer's checkpoint name, such as checkpoint-50."""
    head, _, step = folder.name.partition("-")
    return head == "checkpoint" and step.isdecimal()


def size_text(nbytes: float) -> str:
    """A size for people: 583 MB, 1.17 GB."""
    for unit in ("bytes", "kB", "MB"):
        if nbytes < 1000:  # noqa: PLR2004 - SI units, as disks are sold
            return f"{nbytes:.0f} {unit}" if unit == "bytes" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"


def snapshot_of(folder: Path) -> Path:
    """The snapshot inside a repo's folder in the hub's cache (models--ORG--NAME), else `folder`.

    It is the snapshot of the branch main if that was downloaded, else the only one.
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

    Works for folders below a snapshot, too; empty texts for any other folder.
    """
    absolute = folder.absolute()
    for place in (absolute, *absolute.parents):
        repo = place.parent.parent.name
        if place.parent.name == "snapshots" and repo.startswith("models--"):
            return repo.removeprefix("models--").replace("--", "/", 1), place.name
    return "", ""


def last_part(name: str) -> str:
    """The last part of a repo name or of a path, with either kind of slash."""
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]
