"""Recognizes checkpoints of DeepSpeed and FSDP: finds FSDP's shards, names ZeRO's commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

from exporter.core.atomic_file import children, is_there
from exporter.core.errors import AdapterError, CheckpointError, InputError
from exporter.core.paths import FSDP, is_checkpoint
from exporter.inputs.distcp import is_distcp

FSDP_WHOLE = "pytorch_model_fsdp.bin"
"""Name that accelerate gives to the file of a gathered model."""
FSDP_LOCAL = "pytorch_model_fsdp*_rank*.bin"
ZERO_STATES = ("*_optim_states.pt", "*_model_states.pt")
ZERO_SCRIPT = "zero_to_fp32.py"
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<of>\d{5})\.(?P<ending>safetensors|bin)")
CONFIG = "adapter_config.json"
TRAINER = "`stage3_gather_16bit_weights_on_model_save: true` in DeepSpeed's settings"


def newest(folder: Path, holds: Callable[[Path], object]) -> Path | None:
    """The newest checkpoint-N of a training run for which `holds` is true."""
    found = [child for child in children(folder) if is_checkpoint(child) and holds(child)]
    return max(found, key=lambda child: int(child.name.partition("-")[2]), default=None)


def fsdp_in(folder: Path) -> Path | None:
    """FSDP's shards: the folder itself, or its subfolder for them."""
    return next((at for at in (folder, folder / FSDP) if is_distcp(at)), None)


def fsdp_inside(folder: Path) -> Path | None:
    """FSDP's shards in a folder or in its newest checkpoint with any."""
    if found := fsdp_in(folder):
        return found
    checkpoint = newest(folder, fsdp_in)
    return fsdp_in(checkpoint) if checkpoint else None


def zero_in(folder: Path) -> Path | None:
    """The DeepSpeed ZeRO checkpoint at a folder: itself, or its parent if it is a global_stepN."""
    if any(any(folder.glob(f"global_step*/{states}")) for states in ZERO_STATES):
        return folder
    if any(any(folder.glob(states)) for states in ZERO_STATES):
        return folder.parent if folder.name.startswith("global_step") else folder
    return None


def zero_inside(folder: Path) -> Path | None:
    """The ZeRO checkpoint at a folder, else the newest one of a training run."""
    return zero_in(folder) or newest(folder, zero_in)


def refuse_shards(folder: Path, error: type[InputError], *, is_adapter: bool) -> None:
    """Raise `error` if a folder holds training shards instead of weights."""
    if zero := zero_inside(folder):
        what = "the adapter" if is_adapter else "the model"
        raise error(
            f"`{zero}` is a checkpoint of DeepSpeed ZeRO: {what} is in the shards of its"
            " processes, which only DeepSpeed puts together",
            hint=zero_hint(zero, is_adapter=is_adapter),
        )
    if local := next(iter(sorted(folder.glob(FSDP_LOCAL))), None):
        raise error(
            f"`{local}` holds one process's part of an FSDP training, which only that"
            " training can put together",
            hint="load it there, and save with fsdp_state_dict_type: FULL_STATE_DICT",
        )


def zero_hint(checkpoint: Path, *, is_adapter: bool) -> str:
    """The commands that turn the checkpoint into a folder that can be exported."""
    whole = checkpoint.with_name(f"{checkpoint.resolve().name}-whole")
    script, here, target = (
        shlex.quote(str(path)) for path in (checkpoint / ZERO_SCRIPT, checkpoint, whole)
    )
    if not (checkpoint / ZERO_SCRIPT).exists():
        script = "-m deepspeed.utils.zero_to_fp32"
    frozen = " --exclude_frozen_parameters" if is_adapter else ""
    files = CONFIG if is_adapter else "*.json"
    return (
        f"where DeepSpeed is installed: `python {script} {here} {target} --safe_serialization"
        f"{frozen} && cp {here}/{files} {target}/`; then name {target}"
    )


def shards_by_name(folder: Path, stem: str, error: type[InputError]) -> list[Path]:
    """The files STEM-00001-of-0000N of a folder without an index, if it has any.

    Raises `error` if one of the N is missing, or for two sets.
    """
    found = [
        (path, part)
        for path in children(folder)
        if (part := SHARD.fullmatch(path.name)) and part["stem"] == stem
    ]
    kinds = sorted({(part["ending"], int(part["of"])) for _, part in found}, reverse=True)
    if not kinds:
        return []
    ending, total = kinds[0]  # safetensors goes before a pickle
    if len({of for kind, of in kinds if kind == ending}) > 1:
        raise error(
            f"`{folder}` holds the shards of two models: {found[0][0].name}, {found[-1][0].name}",
            hint="keep those of one of them",
        )
    shards = {int(part["number"]): path for path, part in found if part["ending"] == ending}
    if missing := [number for number in range(1, total + 1) if number not in shards]:
        raise error(
            f"`{folder / f'{stem}-{missing[0]:05}-of-{total:05}.{ending}'}` is missing"
            f" ({len(missing)} of {total} shards)",
            hint="the download is unfinished: fetch that file",
        )
    return [shards[number] for number in sorted(shards)]


def refuse_empty(sizes: Iterable[int], path: Path) -> None:
    """Raise AdapterError for weights that ZeRO-3 saved without gathering: names without values."""
    found = list(sizes)
    if found and all(found):
        return
    folder = path.parent
    again = f"save the trained model again, with {TRAINER}"
    zero = zero_in(folder) or (folder if any(map(is_there, marks_of_zero(folder))) else None)
    raise AdapterError(
        f"`{path}` holds no tensors"
        if not found
        else f"{found.count(0)} of {len(found)} tensors in `{path}` are empty: DeepSpeed ZeRO-3"
        " saved them without gathering them first",
        hint=f"{zero_hint(zero, is_adapter=True)}; or {again}"
        if zero
        else f"{again}; a checkpoint with {ZERO_SCRIPT} in it can be put together by that",
    )


def marks_of_zero(folder: Path) -> list[Path]:
    """Paths of the files that DeepSpeed leaves beside its states; they may not exist."""
    return [folder / ZERO_SCRIPT, *folder.glob("global_step*")]


def config_above(shards: Path, name: str) -> Path | None:
    """The nearest folder with a config: the shards', their checkpoint's or their run's."""
    places = (shards, *list(shards.absolute().parents)[:2])
    return next((place for place in places if is_there(place / name)), None)


def home_of_adapter(shards: Path) -> Path:
    """The folder with the config of a sharded adapter. Raises AdapterError if there is none."""
    if home := config_above(shards, CONFIG):
        return home
    raise AdapterError(
        f"`{shards}` are FSDP's shards, and no {CONFIG} lies beside them or above: they do not say"
        " the adapter's rank and scale",
        hint=f"put the {CONFIG} of the training into `{shards.parent}`;"
        " of a full fine-tune, the base's config.json and tokenizer",
    )


def home_of_model(shards: Path) -> Path:
    """The folder with the config of a sharded model. Raises CheckpointError if there is none."""
    if home := config_above(shards, "config.json"):
        return home
    raise CheckpointError(
        f"`{shards}` are FSDP's shards, and no config.json lies beside them or above",
        hint=f"copy the base's config.json and its tokenizer's files into `{shards.parent}`",
    )
