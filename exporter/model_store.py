"""The local store: one folder of GGUF files, each named MODEL-QUANT.gguf."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.core.atomic_file import (
    PARTIAL,
    describe_missing,
    explained,
    refuse_locked,
    taken_bytes,
)
from exporter.core.errors import ModelError
from exporter.core.events import Note, Report, silent
from exporter.core.ggml_types import QUANTS, parse_quant
from exporter.core.gguf import SHARD, SUFFIX, GGUFFile, read_gguf, shard_paths
from exporter.core.near_names import did_you_mean, near_files
from exporter.core.resumable_file import Unfinished

HUB_NAME = re.compile(r"[A-Z][\w.]*-[\w.-]+", re.ASCII)
"""Pattern of hub model names, which stored models rarely have: Qwen3-0.6B."""
QUANT_AT_END = re.compile(rf"-({'|'.join(sorted(QUANTS, key=len, reverse=True))})$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A GGUF in the store."""

    path: Path
    """The first file of a split model."""
    is_finished: bool = True
    """Whether it has its final name; False for the remainder of a stopped export."""

    @property
    def full_name(self) -> str:
        """The file's name without its suffix, such as my-lora-Q4_K_M."""
        shard = SHARD.fullmatch(self.path.name)
        return shard["stem"] if shard else self.path.name.removesuffix(SUFFIX)

    @property
    def name(self) -> str:
        """The model without its quantization, such as my-lora."""
        return QUANT_AT_END.sub("", self.full_name)


LONGEST = 180  # bytes of a name; file systems allow 255, suffixes included


def file_name(name: str, quant: str) -> str:
    """The file name of a stored model."""
    return f"{plain_name(name)}-{quant}{SUFFIX}"


def plain_name(name: str) -> str:
    """The name with `-` for characters unsafe in a shell or a path, cut to LONGEST bytes."""
    plain = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "model"
    return plain.encode()[:LONGEST].decode(errors="ignore")


def projector_beside(path: Path, names: Sequence[str]) -> Path | None:
    """The projector (mmproj) beside a model: the one of a model in `names`, else the only one."""
    named = (path.with_name(f"mmproj-{name}{SUFFIX}") for name in names)
    if found := next((projector for projector in named if projector.exists()), None):
        return found
    others = list(path.parent.glob(f"mmproj*{SUFFIX}"))
    return others[0] if len(others) == 1 else None


def adapter_file_name(name: str) -> str:
    """The file name of a stored GGUF adapter; models never have such a name."""
    return f"{plain_name(name)}.lora{SUFFIX}"


def list_models(store: Path) -> list[StoredModel]:
    if not store.is_dir():
        return []
    files = (path for path in store.iterdir() if path.suffix == SUFFIX and path.is_file())
    return [StoredModel(path) for path in sorted(files) if is_model(path)]


def is_model(path: Path) -> bool:
    """Whether a path names a model; of a split model, only the first file does."""
    shard = SHARD.fullmatch(path.name)
    return not path.name.startswith(".") and (not shard or int(shard["number"]) == 1)


def list_gone(store: Path) -> list[StoredModel]:
    """Imported models that are links to files of other programs, which are gone."""
    if not store.is_dir():
        return []
    links = (path for path in store.iterdir() if path.suffix == SUFFIX and path.is_symlink())
    return [StoredModel(path) for path in sorted(links) if is_model(path) and not path.exists()]


def gone(model: StoredModel) -> ModelError:
    """The error for a model whose file another program has deleted."""
    return ModelError(
        f"{model.full_name!r} {describe_missing(model.path)}",
        hint="get it again in the program it was imported from, or delete the link: decant rm"
        f" {model.full_name}",
    )


def list_unfinished(store: Path) -> list[StoredModel]:
    """Remainders of stopped exports, which the same export resumes."""
    if not store.is_dir():
        return []
    partials = sorted(store.glob(f".*{SUFFIX}{PARTIAL}"))
    paths = (partial.with_name(partial.name[1:].removesuffix(PARTIAL)) for partial in partials)
    return [StoredModel(path, is_finished=False) for path in paths if is_model(path)]


def shards_of(model: StoredModel) -> tuple[Path, ...]:
    """The file of a model, or all files of a split one."""
    shard = SHARD.fullmatch(model.path.name)
    if not shard:
        return (model.path,)
    return shard_paths(model.path.with_name(shard["stem"] + SUFFIX), int(shard["count"]))


def files_of(model: StoredModel) -> list[Path]:
    """All files of a model in the store, with the remainders of a stopped export."""
    items = [Unfinished(path, 0, {}) for path in shards_of(model)]
    paths = (path for item in items for path in (item.path, item.partial, item.journal))
    return [path for path in paths if os.path.lexists(path)]


def find_models(text: str, store: Path, *, unfinished: bool = False) -> list[StoredModel]:
    """The stored models that NAME, NAME-QUANT or NAME:QUANT means.

    unfinished: whether those of stopped exports, and links whose files are gone, count, too. Raises
    ModelError, with the nearest names, when there is none.
    """
    models = list_models(store)
    if unfinished:
        here = {model.path for model in models}
        models += [model for model in list_unfinished(store) if model.path not in here]
        models += list_gone(store)
    name, colon, quant = text.partition(":")
    wanted = f"{name}-{parse_quant(quant)}" if colon else text.removesuffix(SUFFIX)
    found = [model for model in models if model.full_name == wanted]
    if not found and not colon:
        found = [model for model in models if model.name == wanted]
    if found:
        return found
    for model in list_gone(store):
        if wanted == model.full_name or (wanted == model.name and not colon):
            raise gone(model)
    names = sorted({name for model in models for name in (model.name, model.full_name)})
    otherwise = "`decant list` shows the models"
    if text.endswith(SUFFIX):
        otherwise = near_files(Path(text), otherwise, (SUFFIX,))
    advice = did_you_mean(text, names, otherwise, most=3, alike=0.5)
    if advice == otherwise and HUB_NAME.fullmatch(text):
        advice += f"; a model of the hub is named with its owner: ORG/{text}"
    if Path(text).is_dir():
        advice = f"if you mean the folder, export it first: decant export {text}"
    refuse_other_file(text)
    raise ModelError(
        f"there is no model {text!r} in `{store}`, nor a file of that name",
        hint=advice,
    )


def find_model(text: str, store: Path, *, report: Report = silent) -> Path:
    """The one GGUF that MODEL means: a path, a name in the store, or a repo, which is pulled.

    A stored model takes precedence over a folder of its name, with a note. Raises ModelError when
    there is none, or when a name alone means several.
    """
    path = Path(text)
    if path.suffix == SUFFIX and path.exists():
        return path
    from exporter.hub.repo_refs import is_link  # local models need no downloader
    from exporter.hub.resolve import is_repo, pull_gguf

    if is_link(text) or (not text.endswith(SUFFIX) and is_repo(text)):
        return pull_gguf(text, report=report)
    return find_local(text, store, report=report)


def find_local(text: str, store: Path, *, report: Report = silent) -> Path:
    """The one GGUF that MODEL means on this machine: a path, or a name in the store.

    Raises ModelError when there is none, or when a name alone means several.
    """
    path = Path(text)
    if path.suffix == SUFFIX and path.exists():
        return path
    if path.suffix == SUFFIX and path.is_symlink():
        raise ModelError(f"`{text}` {describe_missing(path)}", hint="is its disk there?")
    if "/" in text:
        refuse_other_file(text)
        is_folder = path.is_dir()
        raise ModelError(
            f"`{text}` is a folder, not a GGUF" if is_folder else f"there is no GGUF `{text}`",
            hint=f"export it first: decant export {text}"
            if is_folder
            else near_files(path, "is the path right?"),
        )
    found = find_models(text, store)
    if len(found) > 1:
        raise ModelError(
            f"{text!r} is stored in {len(found)} quantizations",
            hint=f"name one: {', '.join(model.full_name for model in found)}"
            + (f"; the folder of that name is ./{text}" if path.is_dir() else ""),
        )
    if path.is_dir():
        report(Note(f"{text!r} is the stored model here; the folder beside it is `./{text}`"))
    return found[0].path


def is_stored(text: str, store: Path) -> bool:
    """Whether a stored model has this name; it takes precedence over a folder of that name."""
    return "/" not in text and text in {
        name for model in list_models(store) for name in (model.name, model.full_name)
    }


def refuse_other_file(text: str) -> None:
    """Raise ModelError for an existing file that is not a GGUF."""
    path = Path(text)
    if path.suffix != SUFFIX and path.is_file():
        raise ModelError(f"`{text}` is a file, but not a GGUF", hint=other_file_hint(path))


def other_file_hint(path: Path) -> str:
    if path.suffix in (".zip", ".safetensors", ".bin"):
        return f"an adapter, or a model, becomes one: decant export {path}"
    return "`decant inspect FOLDER` shows what a folder holds; `decant list` shows the models"


def refuse_adapter(header: GGUFFile) -> None:
    """Raise ModelError for a GGUF that is an adapter: it answers nothing without its base."""
    if header.is_adapter:
        base = header.text("decant.base") or "its base"
        raise ModelError(
            f"`{header.path}` is a LoRA adapter for {base}, not a model",
            hint="merge it into a model: decant export ADAPTER; or give it to llama-server:"
            f" -m BASE.gguf --lora {header.path.name}",
        )


def size_of(path: Path) -> int:
    """Size in bytes; of an unfinished file, which has holes, the bytes on the disk."""
    return taken_bytes(path) if path.name.startswith(".") else path.stat().st_size


def own_bytes(path: Path) -> int:
    """The bytes that deleting a file frees: none if it has another name, or is a link."""
    is_shared = path.is_symlink() or path.stat().st_nlink > 1
    return 0 if is_shared else size_of(path)


def remove_models(models: list[StoredModel]) -> int:
    """Delete the files. Returns the bytes that this frees.

    Raises OutputError, before anything is deleted, for one that an export is writing.
    """
    freed = 0
    paths = [path for model in models for path in files_of(model)]
    for path in paths:
        if path.name.endswith(PARTIAL):
            refuse_locked(path)
    for path in paths:
        freed += own_bytes(path)
        with explained(path):
            path.unlink()
    return freed


def summary(model: StoredModel) -> dict[str, object]:
    """One model's row in `decant list`; a damaged file is listed with its error."""
    row: dict[str, object] = {
        "name": model.full_name,
        "nbytes": sum(path.stat().st_size for path in shards_of(model) if path.exists()),
        "modified": model.path.stat().st_mtime,
        "path": str(model.path),
    }
    try:
        header = read_gguf(model.path)
    except ModelError as error:
        return row | {"error": error.message}
    return row | {
        "kind": "adapter" if header.is_adapter else "model",
        "architecture": header.architecture,
        "parameters": header.parameters,
        "base": header.text("decant.base"),
        "adapter": header.text("decant.adapter"),
    }
