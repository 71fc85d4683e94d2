"""The models in the hub's cache, as huggingface_hub scans it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.core.atomic_file import is_there
from exporter.core.gguf import SHARD, SUFFIX
from exporter.hub.resolve import ADAPTER_FILES, choose_gguf, split_quant
from exporter.stores.other_model import OtherFile, OtherModel, no_such_model

if TYPE_CHECKING:
    from huggingface_hub import CachedFileInfo, CachedRepoInfo, CachedRevisionInfo

SHA256 = re.compile(r"[0-9a-f]{64}")
WEIGHTS = (".safetensors", ".bin")
NO_STORE = "`decant pull ORG/NAME` brings a model into the cache"


def hub_folder() -> Path:
    """The folder of the cache: HF_HUB_CACHE, HF_HOME, or its default."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def hub_models(cache: Path) -> list[OtherModel]:
    """All GGUFs, checkpoints and adapters of the cache; damaged repos are left out."""
    return [model for repo in repos(cache) for model in models_of(repo)]


def repos(cache: Path) -> list[CachedRepoInfo]:
    from huggingface_hub import scan_cache_dir

    if not is_there(cache) or not cache.is_dir():
        return []
    found = [repo for repo in scan_cache_dir(cache).repos if repo.repo_type == "model"]
    return sorted(found, key=lambda repo: repo.repo_id)


def newest(repo: CachedRepoInfo) -> CachedRevisionInfo | None:
    """The revision of the branch main, else the newest one with files."""
    revisions = [revision for revision in repo.revisions if revision.files]
    return max(revisions, key=lambda one: ("main" in one.refs, one.last_modified), default=None)


def models_of(repo: CachedRepoInfo) -> list[OtherModel]:
    revision = newest(repo)
    if revision is None:
        return []
    files = {
        file.file_path.relative_to(revision.snapshot_path).as_posix(): file
        for file in revision.files
    }
    ggufs = sorted(name for name in files if name.endswith(SUFFIX) and is_model(name))
    if ggufs:
        return [gguf_model(repo.repo_id, name, files) for name in ggufs]
    if any(Path(name).name in ADAPTER_FILES for name in files):
        instead = f"decant export {repo.repo_id}"
        return [other(repo, revision, "it is an adapter, no GGUF", instead)]
    if any(name.endswith(WEIGHTS) for name in files):
        instead = f"decant export - --base {repo.repo_id}"
        return [other(repo, revision, "it is a checkpoint, no GGUF", instead)]
    return []


def is_model(name: str) -> bool:
    """Whether a GGUF's name is that of a model: no projector, no later part of a split one."""
    shard = SHARD.fullmatch(Path(name).name)
    return "mmproj" not in name.lower() and (not shard or int(shard["number"]) == 1)


def other(
    repo: CachedRepoInfo, revision: CachedRevisionInfo, problem: str, instead: str
) -> OtherModel:
    return OtherModel("hf", repo.repo_id, revision.size_on_disk, problem=problem, instead=instead)


def gguf_model(repo: str, name: str, files: dict[str, CachedFileInfo]) -> OtherModel:
    """A GGUF with all its parts, and the projectors in its folder."""
    shard = SHARD.fullmatch(Path(name).name)
    names = [name]
    if shard:
        head = name.removesuffix(f"-00001-of-{shard['count']}{SUFFIX}")
        count = int(shard["count"])
        names = [f"{head}-{n:05}-of-{count:05}{SUFFIX}" for n in range(1, count + 1)]
    missing = [one for one in names if one not in files]
    here = [files[one] for one in names if one in files]
    beside = [
        file for path, file in sorted(files.items())
        if Path(path).parent == Path(name).parent and "mmproj" in path.lower()
        and path.endswith(SUFFIX)
    ]  # fmt: skip
    return OtherModel(
        "hf",
        f"{repo}/{name}",
        sum(file.size_on_disk for file in here),
        tuple(map(other_file, here)),
        shard["stem"] if shard else Path(name).name.removesuffix(SUFFIX),
        projectors=tuple(map(other_file, beside)),
        problem=f"{missing[0]} is not in the cache" if missing else "",
        instead=f"decant pull {repo} {' '.join(names)}" if missing else "",
    )


def other_file(file: CachedFileInfo) -> OtherFile:
    """A cached file; its blob's name is its sha256, except for small ones."""
    name = file.blob_path.name
    return OtherFile(file.file_path, name if SHA256.fullmatch(name) else "")


def find_hub(text: str, cache: Path) -> OtherModel:
    """The model of ORG/REPO[:QUANT] or ORG/REPO/FILE.gguf.

    Raises ModelError if the cache has none, or several.
    """
    models = hub_models(cache)
    for model in models:
        if text == model.name:
            return model
    repo, quant = split_quant(text)
    within = [model for model in models if model.files and model.name.startswith(f"{repo}/")]
    if not within:
        known = [model.name for model in models]
        raise no_such_model("hf", text, known, NO_STORE, at=str(cache))
    return chosen(text, repo, quant, within)


def chosen(text: str, repo: str, quant: str, models: Sequence[OtherModel]) -> OtherModel:
    names = [model.name.removeprefix(f"{repo}/") for model in models]
    return models[names.index(choose_gguf(text, names, quant))]
