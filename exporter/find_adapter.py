"""Where the adapter lies in what a user named: a folder, one of its files, a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporter.core.errors import AdapterError
from exporter.core.events import Note, Report

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
MLX_WEIGHTS = "adapters.safetensors"
FEW = 8  # names in a hint


@dataclass(frozen=True, slots=True)
class FoundAdapter:
    """The folder of an adapter, and its weights where they have no usual name."""

    folder: Path
    weights: Path | None = None


def find_adapter(place: Path, *, report: Report) -> FoundAdapter:
    """The adapter that `place` means; no file of it is read.

    A training run's folder stands for its newest checkpoint. Raises AdapterError for a place
    that holds no adapter, or several of which none goes before the others.
    """
    if place.is_file():
        return of_file(place)
    if not place.is_dir():
        raise AdapterError(
            f"there is no adapter folder `{place}`",
            hint="name the folder that holds adapter_config.json",
        )
    folder = newest_checkpoint(place, report=report)
    return FoundAdapter(named_inside(folder, report=report))


def of_file(path: Path) -> FoundAdapter:
    """The adapter that one of its own files stands for."""
    folder = path.parent
    if path.name == CONFIG:
        return FoundAdapter(folder)
    if path.suffix not in (".safetensors", ".bin", ".pt"):
        raise AdapterError(
            f"`{path}` is no file of an adapter",
            hint="name the adapter's folder, which holds adapter_config.json",
        )
    if not (folder / CONFIG).exists():
        raise AdapterError(
            f"`{folder / CONFIG}` is missing: `{path.name}` alone does not say its rank and scale",
            hint=f"put the {CONFIG} of the training beside it",
        )
    usual = path.name in (WEIGHTS, MLX_WEIGHTS)
    return FoundAdapter(folder, None if usual else path)


def is_checkpoint(folder: Path) -> bool:
    head, _, step = folder.name.partition("-")
    return head == "checkpoint" and step.isdecimal()


def newest_checkpoint(folder: Path, *, report: Report) -> Path:
    """`folder`, or the last checkpoint of a training run that saved nothing else."""
    if (folder / CONFIG).exists():
        return folder
    checkpoints = [child for child in folder.iterdir() if is_checkpoint(child) and inside(child)]
    if not checkpoints:
        return folder
    newest = max(checkpoints, key=lambda child: int(child.name.partition("-")[2]))
    report(Note(f"`{folder}` is a training run: its newest checkpoint is `{newest.name}`"))
    return newest


def inside(folder: Path) -> list[Path]:
    """The adapters in a folder: itself, else those that PEFT saved under a name in it."""
    if not folder.is_dir():
        return []
    if (folder / CONFIG).exists():
        return [folder]
    return sorted(child for child in folder.iterdir() if (child / CONFIG).exists())


def named_inside(folder: Path, *, report: Report) -> Path:
    """`folder`, or the one adapter that PEFT saved under its name in it."""
    found = inside(folder)
    if not found or found == [folder]:
        return folder
    if len(found) > 1:
        named = ", ".join(child.name for child in found[:FEW])
        raise AdapterError(
            f"`{folder}` holds {len(found)} adapters: {named}{', …' if found[FEW:] else ''}",
            hint=f"name one: `{found[0]}`, or --subfolder {found[0].name}",
        )
    report(Note(f"the adapter in `{folder}` was saved under a name: `{found[0].name}`"))
    return found[0]


def hint_for_missing(folder: Path) -> str:
    if (folder / "config.json").exists():
        return "this looks like a whole model; to convert it as it is, pass it as --base alone"
    return "name the folder that PEFT's save_pretrained wrote"
