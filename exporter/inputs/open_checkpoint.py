"""Opens a base model's folder in Hugging Face's layout, and checks that its files are all there."""

from __future__ import annotations

from pathlib import Path

from exporter.core.atomic_file import describe_missing, read_json_object
from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.core.near_names import near_files
from exporter.core.safetensors import read_header
from exporter.inputs.checkpoint import Checkpoint
from exporter.inputs.distcp import read_distcp
from exporter.inputs.lazy_tensor import Tensor
from exporter.inputs.name_wrappers import unwrapped
from exporter.inputs.no_checkpoint import not_a_model, refuse_unmerged
from exporter.inputs.quantized.plain_base import plain_tensors
from exporter.inputs.sharded_checkpoint import (
    FSDP_WHOLE,
    fsdp_in,
    home_of_model,
    refuse_shards,
    shards_by_name,
)
from exporter.inputs.torch_pickle import read_pickled

WHOLE = {"model.safetensors": False, "pytorch_model.bin": True, FSDP_WHOLE: True}
"""File names of single-file models -> whether the file is a pickle; the first one wins."""


FETCH = "the download is unfinished: fetch that file"


def open_checkpoint(folder: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """Read a folder's config and tensor headers, and check that all files exist.

    Raises CheckpointError for a missing, cut or inconsistent file, UnsupportedError for a folder
    that needs its custom Python code or has weights in another format.
    """
    shards = fsdp_in(folder) if folder.is_dir() else None
    if shards == folder:
        folder = home_of_model(shards)
    if folder.is_file():
        raise CheckpointError(
            f"`{folder}` is a file, and no GGUF",
            hint="unpack it if it is an archive; name the base's folder with --base FOLDER",
        )
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no base model folder `{folder}`",
            hint=near_files(
                folder, "name it with --base FOLDER, or with --base ORG/NAME, its name on the hub"
            ),
        )
    if not (folder / "config.json").exists() and (known := not_a_model(folder)):
        raise known
    config = read_json_object(
        folder / "config.json",
        error=CheckpointError,
        hint="download or copy the file again"
        if (folder / "config.json").exists()
        else f"`{folder}` does not look like a model folder; is it an adapter, or unfinished?",
    )
    if not trust_remote_code:
        refuse_own_code(folder, config)
    tensors = index_tensors(folder, shards)
    refuse_unmerged(tensors, folder, CheckpointError)
    tensors = unwrapped(tensors)
    tensors, config, kind = plain_tensors(tensors, config)
    return Checkpoint(folder, config, tensors, quantized_as=kind)


def refuse_own_code(folder: Path, config: dict[str, object]) -> None:
    """Raise UnsupportedError for a model or tokenizer that needs custom Python code.

    A model that transformers has a class for loads without that code, such as Phi-3 and
    DeepSeek-V3.
    """
    tokenizer = folder / "tokenizer_config.json"
    configs = {"config.json": config}
    if tokenizer.exists():
        configs[tokenizer.name] = read_json_object(
            tokenizer, error=CheckpointError, hint="download or copy the file again"
        )
    for name, content in configs.items():
        if "auto_map" in content and not (content is config and is_known(config)):
            raise UnsupportedError(
                f"`{folder / name}` needs custom Python code (auto_map), which decant does not run",
                hint="many such models work without it: remove auto_map from a copy;"
                " or read that code and pass --trust-remote-code",
            )


def is_known(config: dict[str, object]) -> bool:
    """Whether transformers itself has the classes of a config."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    named = config.get("architectures")
    classes = named if isinstance(named, list) and named else [None]
    return config.get("model_type") in CONFIG_MAPPING_NAMES and all(
        isinstance(name, str) and hasattr(transformers, name) for name in classes
    )


def index_tensors(folder: Path, fsdp: Path | None = None) -> dict[str, Tensor]:
    """The tensors of a folder by name, each with its shape (rows, columns) or any other.

    fsdp: shards to use if the folder has no other weights. Raises CheckpointError for a tensor that
    is duplicated, missing or not in the index.
    """
    if fsdp is not None and (fsdp.parent != folder or not has_weights(folder)):
        return read_distcp(fsdp, error=CheckpointError)
    pickled, shards = shard_names(folder)
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        read = read_pickled if pickled else read_header
        found = read(folder / shard, error=CheckpointError)
        if twice := tensors.keys() & found.keys():
            raise CheckpointError(
                f"tensor `{min(twice)}` is in `{shard}` and in another file of `{folder}`",
                hint="remove what does not belong to the checkpoint",
            )
        tensors.update(found)
    listed = {name for name in shards if name and not name.endswith("/")}
    if listed and (astray := sorted(listed ^ tensors.keys())):
        where = "the index but in no file" if astray[0] in listed else "a file but not in the index"
        raise CheckpointError(
            f"tensor `{astray[0]}` ({len(astray)} in all) is in {where} of `{folder}`",
            hint="download or copy the folder again",
        )
    return tensors


def has_weights(folder: Path) -> bool:
    return any((folder / name).exists() for w in WHOLE for name in (w, f"{w}.index.json"))


def shard_names(folder: Path) -> tuple[bool, dict[str, str]]:
    """Whether the shards are pickles, and {tensor name: file name}.

    Without an index the keys are "" for a single file, or "0/", "1/" … for several. Raises
    CheckpointError without weights.
    """
    for whole, pickled in WHOLE.items():
        if (folder / f"{whole}.index.json").exists():
            return pickled, indexed_shards(folder, whole)
        if (folder / whole).exists():
            return pickled, {"": whole}
    for whole, pickled in WHOLE.items():
        stem, _, ending = whole.rpartition(".")
        found = shards_by_name(folder, stem, CheckpointError)
        if found and found[0].suffix == f".{ending}":
            return pickled, {f"{at}/": path.name for at, path in enumerate(found)}
    for whole in WHOLE:
        if (folder / whole).is_symlink():
            raise CheckpointError(
                f"`{folder / whole}` {describe_missing(folder / whole)}", hint=FETCH
            )
    refuse_shards(folder, CheckpointError, is_adapter=False)
    raise CheckpointError(
        f"`{folder}` holds no model.safetensors (and no pytorch_model.bin)",
        hint="is the download complete? a base needs config.json and model*.safetensors",
    )


def indexed_shards(folder: Path, whole: str) -> dict[str, str]:
    """The weight_map of an index. Raises CheckpointError for a malformed one or a missing file."""
    name = f"{whole}.index.json"
    index = read_json_object(
        folder / name, error=CheckpointError, hint="download or copy the file again"
    )
    weight_map = index.get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(
            isinstance(file, str) and file == Path(file).name for file in weight_map.values()
        )
    ):
        raise CheckpointError(
            f"`{folder / name}` has no usable weight_map", hint="download or copy the file again"
        )
    for file in sorted(set(weight_map.values())):
        if not (folder / file).exists():
            raise CheckpointError(
                f"`{folder / file}` {describe_missing(folder / file)}, though `{name}` names it",
                hint=FETCH,
            )
    return weight_map
