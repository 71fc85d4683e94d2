"""The GGUFs in LM Studio's folder: PUBLISHER/MODEL/FILE.gguf.

Where the folder is: findLMStudioHome and resolveModelsFolderPath in https://github.com/lmstudio-ai.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from exporter.core.atomic_file import is_there
from exporter.core.gguf import SHARD, SUFFIX, shard_paths
from exporter.stores.other_model import OtherFile, OtherModel, no_such_model, one_of

POINTER = ".lmstudio-home-pointer"
OLDER = Path(".cache", "lm-studio")
PROJECTOR = "mmproj"
NO_STORE = (
    "decant looks for its models in the folder that LM Studio's settings name, else in"
    " ~/.lmstudio/models"
)


def lmstudio_home() -> Path:
    """LM Studio's own folder, which need not exist."""
    home = Path.home()
    try:
        named = (home / POINTER).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        named = ""
    if named and Path(named).is_absolute():
        return Path(named)
    return home / OLDER if is_there(home / OLDER) else home / ".lmstudio"


def lmstudio_folder() -> Path:
    """The folder of its models, which need not exist."""
    home = lmstudio_home()
    try:
        settings = json.loads((home / "settings.json").read_text(encoding="utf-8"))
        chosen = settings["downloadsFolder"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        chosen = None
    if isinstance(chosen, str) and Path(chosen).is_absolute():
        return Path(chosen)
    return home / "models"


def lmstudio_models() -> list[OtherModel]:
    """All GGUF models of LM Studio's folder; those of other formats are not listed."""
    folder = lmstudio_folder()
    try:
        paths = sorted(path for path in folder.glob(f"*/*/*{SUFFIX}") if path.is_file())
    except OSError:  # not readable
        return []
    models = [path for path in paths if not is_projector(path) and is_first(path)]
    return [described(path, folder, paths) for path in models]


def is_projector(path: Path) -> bool:
    return PROJECTOR in path.name.lower()


def is_first(path: Path) -> bool:
    """Whether a file is a model's only or first one."""
    shard = SHARD.fullmatch(path.name)
    return not shard or int(shard["number"]) == 1


def described(path: Path, folder: Path, paths: Sequence[Path]) -> OtherModel:
    shard = SHARD.fullmatch(path.name)
    stem = shard["stem"] if shard else path.name.removesuffix(SUFFIX)
    parts = shard_paths(path.with_name(stem + SUFFIX), int(shard["count"])) if shard else (path,)
    missing = [part.name for part in parts if not is_there(part)]
    beside = [one for one in paths if one.parent == path.parent and is_projector(one)]
    return OtherModel(
        "lmstudio",
        path.relative_to(folder).as_posix(),
        sum(part.stat().st_size for part in parts if is_there(part)),
        tuple(map(OtherFile, parts)),
        stem,
        projectors=tuple(map(OtherFile, beside)),
        problem=f"{missing[0]} is missing" if missing else "",
    )


def find_lmstudio(text: str) -> OtherModel:
    """The model of a name: PUBLISHER/MODEL/FILE, PUBLISHER/MODEL, MODEL or FILE.

    Raises ModelError if there is none or several.
    """
    models = lmstudio_models()
    if found := one_of("lmstudio", text, models, other_names):
        return found
    known = [model.name for model in models]
    raise no_such_model("lmstudio", text, known, NO_STORE, at=str(lmstudio_folder()))


def other_names(model: OtherModel) -> set[str]:
    path = Path(model.name)
    folder = path.parent
    return {
        str(folder), folder.name, path.name, model.stem, f"{folder}/{model.stem}",
    }  # fmt: skip
