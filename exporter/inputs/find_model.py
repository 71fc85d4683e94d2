"""Finds the whole model in the user's path: a folder, its newest checkpoint, FSDP's shards."""

from __future__ import annotations

import re
from pathlib import Path

from exporter.core.atomic_file import is_there
from exporter.core.errors import CheckpointError, InputError, ModelError
from exporter.core.events import Note, Report
from exporter.core.gguf import read_gguf
from exporter.core.safetensors import read_header
from exporter.inputs.adapter_files import TRAINED
from exporter.inputs.find_adapter import CONFIG as ADAPTER_CONFIG
from exporter.inputs.find_adapter import (
    MLX_WEIGHTS,
    PICKLED,
    TORCHTUNES,
    inside,
    is_gguf_adapter,
    listed,
)
from exporter.inputs.find_adapter import WEIGHTS as ADAPTER_WEIGHTS
from exporter.inputs.sharded_checkpoint import (
    FSDP_WHOLE,
    config_above,
    fsdp_in,
    fsdp_inside,
    newest,
)

CONFIG = "config.json"
LATER = re.compile(r"-(\d{5})-of-\d{5}$")
OF_ADAPTER = (ADAPTER_WEIGHTS, PICKLED, TORCHTUNES, MLX_WEIGHTS)
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", FSDP_WHOLE)


def has_model(folder: Path) -> bool:
    """Whether a folder has a model's config and weights."""
    if not is_there(folder / CONFIG):
        return False
    return any(any(folder.glob(name)) for name in WEIGHTS) or fsdp_in(folder) is not None


def is_merged(folder: Path) -> bool:
    """Whether a folder holds a merged model with a left-over adapter config.

    It reads the names of the weights: trainers save adapters under a model's file names, too.
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
    """The folder that `place` means as a base; `place` itself if nothing better is found.

    A training run's folder stands for its newest checkpoint. Shards without a config stand for the
    model whose config lies above them.
    """
    if place.is_file() and stands_for_folder(place):
        return place.parent
    if not place.is_dir() or has_model(place):
        return place
    if checkpoint := newest(place, has_model):
        report(Note(f"`{place}` is a training run: its newest checkpoint is `{checkpoint.name}`"))
        return checkpoint
    shards = fsdp_inside(place)
    if shards and config_above(shards, CONFIG):
        report(Note(f"the model is in FSDP's shards: `{shards}`"))
        return shards
    if not is_there(place / CONFIG) and (gguf := gguf_in(place)):
        report(Note(f"the model in `{place}` is a GGUF: `{gguf.name}`"))
        return gguf
    return place


def stands_for_folder(file: Path) -> bool:
    """Whether a file belongs to a model's folder."""
    is_config = file.name == CONFIG
    return is_config or ((file.parent / CONFIG).is_file() and file.suffix != ".gguf")


def gguf_in(folder: Path) -> Path | None:
    """The one GGUF model of a folder, by its first file. Raises CheckpointError for several."""
    found = [path for path in sorted(folder.glob("*.gguf")) if is_model(path)]
    if len(found) > 1:
        raise CheckpointError(
            f"`{folder}` holds {len(found)} GGUF models: {listed(path.name for path in found)}",
            hint=f"name one of them, such as `{found[0]}`",
        )
    return next(iter(found), None)


def is_model(path: Path) -> bool:
    """Whether a GGUF is a model: not an adapter, a projector or a later part of a split one."""
    if (part := LATER.search(path.stem)) and int(part[1]) > 1:
        return False
    try:
        file = read_gguf(path)
    except ModelError:
        return False
    return not file.is_adapter and file.text("general.architecture") != "clip"


def model_in_place_of_adapter(place: Path, *, report: Report) -> Path | None:
    """The whole model that was named as an adapter; None if `place` holds no whole model."""
    if place.is_dir() and is_merged(place):
        report(Note(f"`{place}` is a whole model, whose {ADAPTER_CONFIG} is left from training"))
        return place
    if not place.is_dir() or inside(place) or newest(place, inside):
        return None
    shards = fsdp_inside(place)
    if shards and config_above(shards, ADAPTER_CONFIG):
        return None
    if any(map(is_gguf_adapter, place.glob("*.gguf"))):
        return None
    found = find_model(place, report=report)
    if not has_model(found) and not (shards and found == shards) and found.suffix != ".gguf":
        return None
    report(Note(f"`{place}` is a whole model, no adapter: it is exported unchanged"))
    return found
