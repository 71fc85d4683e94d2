"""Where a whole model lies in what a user named: a folder, its newest checkpoint, FSDP's shards."""

from __future__ import annotations

from pathlib import Path

from exporter.core.atomic_file import is_there
from exporter.core.errors import InputError
from exporter.core.events import Note, Report
from exporter.core.safetensors import read_header
from exporter.inputs.adapter_files import TRAINED
from exporter.inputs.find_adapter import CONFIG as ADAPTER_CONFIG
from exporter.inputs.find_adapter import MLX_WEIGHTS, PICKLED, TORCHTUNES, inside
from exporter.inputs.find_adapter import WEIGHTS as ADAPTER_WEIGHTS
from exporter.inputs.sharded_checkpoint import (
    FSDP_WHOLE,
    config_above,
    fsdp_in,
    fsdp_inside,
    newest,
)

CONFIG = "config.json"
OF_ADAPTER = (ADAPTER_WEIGHTS, PICKLED, TORCHTUNES, MLX_WEIGHTS)
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", FSDP_WHOLE)


def has_model(folder: Path) -> bool:
    """Whether a folder has a model's config and weights of its own."""
    if not is_there(folder / CONFIG):
        return False
    return any(any(folder.glob(name)) for name in WEIGHTS) or fsdp_in(folder) is not None


def is_merged(folder: Path) -> bool:
    """Whether an adapter was merged into a folder's model, and its config left there.

    Its weights are looked at: trainers save an adapter under a model's names, too.
    """
    weights = sorted(folder.glob("model*.safetensors"))
    if not (weights and is_there(folder / CONFIG) and is_there(folder / ADAPTER_CONFIG)):
        return False
    if any(is_there(folder / name) for name in OF_ADAPTER) or any(folder.glob("adapter_model-*")):
        return False
    try:
        return not any(map(TRAINED.search, read_header(weights[0], error=InputError)))
    except InputError:
        return False


def find_model(place: Path, *, report: Report) -> Path:
    """The folder that `place` means as a base; `place` where nothing tells.

    A training run's folder stands for its newest checkpoint, shards without a config for the
    model that the config above them describes.
    """
    if place.is_file() and place.name == CONFIG:
        return place.parent
    if place.is_file() and (place.parent / CONFIG).is_file() and place.suffix != ".gguf":
        return place.parent
    if not place.is_dir() or has_model(place):
        return place
    if checkpoint := newest(place, has_model):
        report(Note(f"`{place}` is a training run: its newest checkpoint is `{checkpoint.name}`"))
        return checkpoint
    shards = fsdp_inside(place)
    if shards and config_above(shards, CONFIG):
        report(Note(f"the model lies in FSDP's shards: `{shards}`"))
        return shards
    return place


def model_in_place_of_adapter(place: Path, *, report: Report) -> Path | None:
    """The whole model that was named as an adapter; None where there is an adapter, or nothing."""
    if place.is_dir() and is_merged(place):
        report(Note(f"`{place}` is a whole model, whose {ADAPTER_CONFIG} is left from training"))
        return place
    if not place.is_dir() or inside(place) or newest(place, inside):
        return None
    shards = fsdp_inside(place)
    if shards and config_above(shards, ADAPTER_CONFIG):
        return None
    found = find_model(place, report=report)
    if not has_model(found) and not (shards and found == shards):
        return None
    report(Note(f"`{place}` is a whole model, no adapter: it is exported as it is"))
    return found
