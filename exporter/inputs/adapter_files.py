"""Finds the files that hold an adapter's weights, with hints where none does."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from exporter.core.atomic_file import children, describe_missing, is_there, read_json_object
from exporter.core.errors import AdapterError, InputError
from exporter.core.events import Note, Report
from exporter.core.safetensors import read_header
from exporter.inputs.distcp import read_distcp
from exporter.inputs.find_adapter import (
    CONFIG,
    MLX_WEIGHTS,
    PICKLED,
    USUAL,
    WEIGHTS,
    FoundAdapter,
    listed,
)
from exporter.inputs.lazy_tensor import Tensor, renamed
from exporter.inputs.mlx_adapter import is_mlx
from exporter.inputs.name_wrappers import is_value_head, without_wrappers
from exporter.inputs.sharded_checkpoint import refuse_empty, shards_by_name
from exporter.inputs.state_dicts import without_adapter_name
from exporter.inputs.torch_pickle import read_pickled

PREFIX = "base_model.model."
PEFT_NAMES = ("base_model.", "base_layer.")
STEM = "adapter_model"
"""Start of the names of an adapter's shards, as transformers writes them."""
UNFINISHED = (".crdownload", ".part", ".partial", ".incomplete", ".download", ".aria2", ".tmp")
"""Endings of files that a browser or a downloader has not finished."""
COPY = re.compile(r"(?P<stem>.+?) ?(\(\d+\)|-?\d| copy)(?P<end>\.\w+)")
"""A name that a browser or a file manager gives to a second file of the same name."""
TRAINED = re.compile(r"[._]lora_(A|B|a|b|embedding|magnitude)|\.(hada|lokr|ia3|oft|vera)_")
MLX_CONFIG = '{"lora_parameters": {"rank": 8, "scale": 20.0}}'
OF_LORA = ("r", "target_modules")
"""Settings in every LoRA config of PEFT's form, with or without a peft_type."""
DEPTHS = ("*/*/", "*/*/*/", "*/*/*/*/")
"""Depths below a folder at which adapters are searched for hints."""
PICTURES = re.compile(r"(^|\.)(lora_unet|lora_te|unet\.|transformer\.(single_)?transformer_blocks)")
"""Tensor names of adapters for image models (Diffusers, kohya)."""
FUSED = re.compile(r"lora_(down|up)\.weight$")


def weight_files(found: FoundAdapter, *, report: Report) -> tuple[Path, ...]:
    """The file, the FSDP folder or the shards that hold an adapter's weights.

    Raises AdapterError if there are none, with a hint about the files that exist.
    """
    folder = found.folder
    if found.weights is not None:
        return (found.weights,)
    for name in USUAL:
        if (folder / name).exists():
            return (folder / name,)
    if shards := shards_by_name(folder, STEM, AdapterError):
        return tuple(shards)
    others = [path for path in children(folder) if path.suffix == ".safetensors"]
    fitting = [path for path in others if holds_lora(path)]
    if len(fitting) == 1:
        report(Note(f"the adapter's weights are in `{fitting[0].name}`"))
        return (fitting[0],)
    weights = folder / WEIGHTS
    raise AdapterError(
        f"`{weights}` {describe_missing(weights)}", hint=hint_for_weights(folder, fitting)
    )


def read_config(folder: Path) -> dict[str, object]:
    """The adapter's config, with PEFT's spelling of its kind.

    Raises AdapterError if it is missing or damaged, with a hint about the folder's contents.
    """
    hint = "restore the file that PEFT's save_pretrained wrote"
    if (folder / CONFIG).is_symlink():
        hint = "copy or download the folder again, with what its links lead to"
    elif not is_there(folder / CONFIG):
        hint = hint_for_config(folder) or "name the folder that PEFT's save_pretrained wrote"
    config = read_json_object(folder / CONFIG, error=AdapterError, hint=hint)
    kind = config.get("peft_type")
    if isinstance(kind, str):
        config["peft_type"] = kind.upper()
    elif not is_mlx(config) and all(name in config for name in OF_LORA):
        config["peft_type"] = "LORA"  # other programs write no peft_type
    return config


def mlx_weights(folder: Path, *, report: Report) -> Path:
    """The weights of mlx-lm's training: the final ones, else those of its newest step.

    Raises AdapterError if there are none.
    """
    weights = folder / MLX_WEIGHTS
    if is_there(weights):
        return weights
    if steps := sorted(folder.glob(f"[0-9]*_{MLX_WEIGHTS}")):
        report(Note(f"`{MLX_WEIGHTS}` is missing: the newest step's are `{steps[-1].name}`"))
        return steps[-1]
    npz = next(folder.glob("*.npz"), None)
    hint = hint_for_npz(npz) if npz else "copy the whole adapter folder"
    raise AdapterError(f"`{weights}` {describe_missing(weights)}", hint=hint)


def holds_lora(path: Path) -> bool:
    """Whether a safetensors file holds an adapter of a language model."""
    names = names_in(path)
    return any(map(TRAINED.search, names)) and not any(map(PICTURES.search, names))


def names_in(path: Path) -> Iterable[str]:
    try:
        return read_header(path, error=InputError)
    except InputError:
        return ()


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """The tensors of an adapter under PEFT's names."""

    files: tuple[Path, ...]
    """The files that hold them; a folder for FSDP."""
    tensors: dict[str, Tensor]
    read_by_peft: bool
    """Whether PEFT itself can load them, by these names from its usual file."""


def read_weights(found: FoundAdapter, *, report: Report) -> AdapterWeights:
    """Read the headers of the weight files. Raises AdapterError if there are none."""
    files = weight_files(found, report=report)
    stored: dict[str, Tensor] = {}
    for path in files:
        stored |= read_file(path)
    refuse_empty((math.prod(tensor.shape) for tensor in stored.values()), files[0])
    if heads := [name for name in stored if is_value_head(name)]:
        report(Note(f"`{heads[0]}` is left out: a value head judges texts, and writes none"))
    plain = {name: without_wrappers(name) for name in stored if name not in heads}
    if not any(name.startswith(PEFT_NAMES) for name in plain.values()):
        plain = {name: PREFIX + new if TRAINED.search(new) else new for name, new in plain.items()}
    tensors = {new: renamed(stored[name], new) for name, new in plain.items()}
    tensors = without_adapter_name(tensors, files[0])
    own = len(files) == 1 and files[0].name in (WEIGHTS, PICKLED)
    return AdapterWeights(files, tensors, own and tensors.keys() <= stored.keys())


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, (rows, columns) or any shape; a folder holds FSDP's
    shards.
    """
    if path.is_dir():
        return read_distcp(path, error=AdapterError)
    if path.suffix == ".safetensors":
        return dict(read_header(path, error=AdapterError))
    return read_pickled(path, error=AdapterError)


def hint_for_weights(folder: Path, several: list[Path]) -> str:
    """A hint for a folder with a config and no weights under a usual name."""
    if several:
        return f"name one of them: {listed(f'`{path}`' for path in several)}"
    for path in children(folder):
        if path.name.endswith(UNFINISHED):
            return f"the download of `{path.name}` was not finished: download it again"
    return "copy the whole adapter folder"


def hint_for_config(folder: Path) -> str | None:
    """A hint for a folder without adapter_config.json, if its files are recognized."""
    if (folder / "config.json").exists():
        return (
            "this looks like a whole model; without --base it is exported unchanged:"
            f" `decant export {shlex.quote(str(folder))}`"
        )
    return of_mlx(folder) or of_second_copy(folder) or of_weights(folder) or of_deeper(folder)


def of_mlx(folder: Path) -> str | None:
    if npz := next(folder.glob("*.npz"), None):
        return hint_for_npz(npz)
    if (folder / MLX_WEIGHTS).exists():
        return (
            f"`{MLX_WEIGHTS}` is mlx-lm's, and its config is missing; with the training's"
            f" rank and scale it begins {MLX_CONFIG}"
        )
    return None


def of_second_copy(folder: Path) -> str | None:
    """A hint for a config with the name that a browser gives to a second file."""
    for path in children(folder):
        copy = COPY.fullmatch(path.name)
        if copy and f"{copy['stem']}{copy['end']}" == CONFIG:
            here, there = (shlex.quote(str(place)) for place in (path, folder / CONFIG))
            return f"`mv {here} {there}`: it has the name of a second copy"
    return None


def of_weights(folder: Path) -> str | None:
    """A hint for weights whose names identify the program that wrote them."""
    for path in children(folder):
        names = names_in(path) if path.suffix == ".safetensors" else ()
        if any(PICTURES.search(name) or FUSED.search(name) for name in names):
            return f"`{path.name}` is a LoRA of a model that makes pictures, which has no GGUF here"
        if any(map(TRAINED.search, names)):
            return f"put the {CONFIG} of the training beside `{path.name}`"
    if any(is_there(folder / name) for name in ("lit_model.pth.lora", "lit_model.pth")):
        return (
            "it is LitGPT's: merge it there (`litgpt merge_lora`), then write it for transformers"
            " (`litgpt convert_from_litgpt`)"
        )
    return None


def of_deeper(folder: Path) -> str | None:
    """A hint that names the adapters some folders below."""
    deeper = [path.parent for depth in DEPTHS for path in folder.glob(f"{depth}{CONFIG}")]
    if not deeper:
        return None
    return f"name one of the adapters in it: {listed(f'`{path}`' for path in sorted(deeper))}"


def hint_for_npz(npz: Path) -> str:
    return (
        f"`{npz.name}` is of the first mlx-lm: where MLX is installed, write it as"
        f" {MLX_WEIGHTS} (mx.save_safetensors), with {MLX_CONFIG} in {CONFIG}"
    )
