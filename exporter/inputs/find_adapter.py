"""Finds the adapter in the user's path: a folder, a file of it, a training run, a zip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.core.atomic_file import children, is_there
from exporter.core.errors import AdapterError, ModelError
from exporter.core.events import Note, Report
from exporter.core.gguf import SUFFIX, read_gguf
from exporter.core.near_names import braced, did_you_mean, near_files
from exporter.core.paths import run_of
from exporter.inputs.sharded_checkpoint import (
    FSDP_WHOLE,
    fsdp_in,
    fsdp_inside,
    home_of_adapter,
    newest,
    refuse_shards,
)
from exporter.inputs.zipped_adapter import ARCHIVES, unpacked, zip_above

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
MLX_WEIGHTS = "adapters.safetensors"
TORCHTUNES = "adapter_model.pt"
USUAL = (
    WEIGHTS,
    PICKLED,
    TORCHTUNES,
    MLX_WEIGHTS,
    "model.safetensors",
    "pytorch_model.bin",
    FSDP_WHOLE,
)
"""Names of an adapter's weights; the later ones come from trainers that save a state_dict."""
FEW = 8  # names in a hint


@dataclass(frozen=True, slots=True)
class FoundAdapter:
    """The folder of an adapter, and its weights if they have an unusual name."""

    folder: Path
    weights: Path | None = None
    run: Path | None = None
    """The training run that was named, if this is the checkpoint of it that decant chose."""


def find_adapter(place: Path, *, report: Report) -> FoundAdapter:
    """The adapter that `place` means; reads none of its files.

    A training run's folder stands for its newest checkpoint. Raises AdapterError for a path without
    an adapter, or with several and no reason to prefer one.
    """
    if (archive := zip_above(place)) is not None:
        place = unpacked(archive, report=report) / place.relative_to(archive)
    if place.is_file():
        return of_file(place)
    if not place.is_dir():
        raise AdapterError(f"there is no adapter folder `{place}`", hint=hint_beside(place))
    found = inside_folder(place, report=report)
    at = found.weights if found.weights and found.weights.is_dir() else found.folder
    return replace(found, run=run_of(place, at))


def inside_folder(place: Path, *, report: Report) -> FoundAdapter:
    """The adapter in a folder, or in a training run's newest checkpoint. Raises AdapterError."""
    folder = named_inside(newest_checkpoint(place, report=report), report=report)
    if not is_whole(folder):
        if shards := fsdp_inside(folder):
            return of_fsdp(shards, report=report)
        refuse_shards(folder, AdapterError, is_adapter=True)
    if not (folder / CONFIG).exists() and (path := gguf_inside(folder, report=report)):
        return FoundAdapter(folder, path)
    return FoundAdapter(folder)


def of_fsdp(shards: Path, *, report: Report) -> FoundAdapter:
    """The adapter in FSDP's shards, with the config of its training."""
    home = home_of_adapter(shards)
    report(Note(f"the adapter lies in FSDP's shards: `{shards}`"))
    return FoundAdapter(home, shards)


def of_file(path: Path) -> FoundAdapter:
    """The adapter that one of its files stands for.

    Raises AdapterError for an archive, for another kind of file, and without the config beside it.
    """
    folder = path.parent
    if path.name == CONFIG:
        return FoundAdapter(folder)
    if path.suffix == SUFFIX:
        return FoundAdapter(folder, path)
    if path.name.endswith(ARCHIVES):
        raise AdapterError(
            f"`{path}` is an archive that decant does not unpack",
            hint=f"tar xf {path}, and name the folder that comes out",
        )
    if path.suffix not in (".safetensors", ".bin", ".pt"):
        raise AdapterError(
            f"`{path}` is not a file of an adapter",
            hint="name the adapter's folder, which holds adapter_config.json",
        )
    if not (folder / CONFIG).exists():
        raise AdapterError(
            f"`{folder / CONFIG}` is missing: `{path.name}` alone does not say its rank and scale",
            hint=f"put the {CONFIG} of the training beside it",
        )
    usual = path.name in (WEIGHTS, MLX_WEIGHTS)
    return FoundAdapter(folder, None if usual else path)


def newest_checkpoint(folder: Path, *, report: Report) -> Path:
    """`folder`, or the last checkpoint of a training run that saved nothing else."""
    if is_whole(folder):
        return folder
    found = newest(folder, inside)
    if found is None:
        return folder
    report(Note(f"`{folder}` is a training run: its newest checkpoint is `{found.name}`"))
    return found


def is_whole(folder: Path) -> bool:
    """Whether a folder has an adapter's config and weights; some trainers save the config first."""
    return is_there(folder / CONFIG) and any(is_there(folder / name) for name in USUAL)


def inside(folder: Path) -> list[Path]:
    """The adapters in a folder: the folder itself, else those that PEFT saved in it by name."""
    if is_whole(folder) or (is_there(folder / CONFIG) and not fsdp_in(folder)):
        return [folder]
    return [child for child in children(folder) if is_there(child / CONFIG)]


def named_inside(folder: Path, *, report: Report) -> Path:
    """`folder`, or the one adapter that PEFT saved under its name in it.

    Raises AdapterError for several.
    """
    found = inside(folder)
    if not found or found == [folder]:
        return folder
    if len(found) > 1:
        raise AdapterError(
            f"`{folder}` holds {len(found)} adapters: {listed(child.name for child in found)}",
            hint=f"name one of them, such as `{found[0]}`;"
            f" `decant export` takes --subfolder {found[0].name}, too",
        )
    report(Note(f"the adapter in `{folder}` was saved under a name: `{found[0].name}`"))
    return found[0]


def gguf_inside(folder: Path, *, report: Report) -> Path | None:
    """The one GGUF adapter of a folder without other adapters. Raises AdapterError for several."""
    found = [path for path in sorted(folder.glob(f"*{SUFFIX}")) if is_gguf_adapter(path)]
    if len(found) > 1:
        raise AdapterError(
            f"`{folder}` holds {len(found)} GGUF adapters: {listed(path.name for path in found)}",
            hint=f"name one of them, such as `{found[0]}`",
        )
    if found:
        report(Note(f"the adapter in `{folder}` is a GGUF: `{found[0].name}`"))
    return next(iter(found), None)


def is_gguf_adapter(path: Path) -> bool:
    try:
        return read_gguf(path).is_adapter
    except ModelError:
        return False


def listed(names: Iterable[str]) -> str:
    some = list(names)
    return ", ".join(some[:FEW]) + (", …" if some[FEW:] else "")


def hint_beside(place: Path) -> str:
    """A hint about the neighbours of a missing folder."""
    near = place.parent
    names = [child.name for child in inside(near) if child != near] if near.is_dir() else []
    if names:
        all_of_them = f"`{near}` has {listed(names)}"
        return did_you_mean(place.name, names, all_of_them, form=f"`{braced(str(near))}/{{}}`")
    return near_files(place, "name the folder that holds adapter_config.json")
