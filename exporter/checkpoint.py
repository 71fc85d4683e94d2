"""A base model's folder, as Hugging Face lays it out: its config and where its tensors lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.core.files import read_json_object
from exporter.core.folders import model_name
from exporter.core.safetensors import StoredTensor, read_header

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened base model; no weight has been read."""

    folder: Path
    config: dict[str, object]
    tensors: dict[str, StoredTensor]
    """By hub name; shard by shard in name order, as llama.cpp's converter reads them."""

    @property
    def name(self) -> str:
        return model_name(self.folder)

    @property
    def architecture(self) -> str:
        """The class named first in config.json, such as LlamaForCausalLM."""
        named = self.config.get("architectures")
        if isinstance(named, list) and named and isinstance(named[0], str):
            return named[0]
        raise CheckpointError(
            f"`{self.folder / 'config.json'}` names no architecture",
            hint='it needs a line such as "architectures": ["LlamaForCausalLM"]',
        )


def open_checkpoint(folder: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """Read a folder's config and the headers of its safetensors, and check that all is there.

    Raises CheckpointError for a missing, cut or inconsistent file, UnsupportedError for a
    folder that needs its own Python code or has weights in another format.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no base model folder `{folder}`", hint="name it with --base FOLDER"
        )
    config = read_json_object(
        folder / "config.json",
        error=CheckpointError,
        hint=f"`{folder}` does not look like a model folder; is it an adapter, or unfinished?",
    )
    if not trust_remote_code:
        refuse_own_code(folder, config)
    return Checkpoint(folder, config, index_tensors(folder))


def refuse_own_code(folder: Path, config: dict[str, object]) -> None:
    """Stop at a folder whose model or tokenizer is Python code of its own."""
    tokenizer = folder / "tokenizer_config.json"
    configs = {"config.json": config}
    if tokenizer.exists():
        configs[tokenizer.name] = read_json_object(
            tokenizer, error=CheckpointError, hint="download or copy the file again"
        )
    for name, content in configs.items():
        if "auto_map" in content:
            raise UnsupportedError(
                f"`{folder / name}` asks for Python code of its own (auto_map), which is not run",
                hint="many such models work without it: remove auto_map from a copy;"
                " or read that code and pass --trust-remote-code",
            )


def index_tensors(folder: Path) -> dict[str, StoredTensor]:
    shards = shard_names(folder)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(shards.values())):
        found = read_header(folder / shard, error=CheckpointError)
        if twice := tensors.keys() & found.keys():
            raise CheckpointError(
                f"tensor `{min(twice)}` is in `{shard}` and in another file of `{folder}`",
                hint="remove what does not belong to the checkpoint",
            )
        tensors |= found
    listed = {name for name in shards if name}
    if listed and (astray := sorted(listed ^ tensors.keys())):
        where = "the index but in no file" if astray[0] in listed else "a file but not in the index"
        raise CheckpointError(
            f"tensor `{astray[0]}` ({len(astray)} in all) is in {where} of `{folder}`",
            hint="download or copy the folder again",
        )
    return tensors


def shard_names(folder: Path) -> dict[str, str]:
    """{tensor name: file name} from the index, or {"": file name} for a single file."""
    if (folder / INDEX).exists():
        index = read_json_object(
            folder / INDEX, error=CheckpointError, hint="download or copy the file again"
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
                f"`{folder / INDEX}` has no usable weight_map",
                hint="download or copy the file again",
            )
        for file in sorted(set(weight_map.values())):
            if not (folder / file).exists():
                raise CheckpointError(
                    f"`{folder / file}` is missing, though `{INDEX}` names it",
                    hint="the download is unfinished: fetch that file",
                )
        return weight_map
    if (folder / "model.safetensors").exists():
        return {"": "model.safetensors"}
    if any(folder.glob("pytorch_model*.bin")):
        raise UnsupportedError(
            f"`{folder}` holds its weights as pytorch_model.bin",
            hint="save them as safetensors: model.save_pretrained(FOLDER)",
        )
    raise CheckpointError(
        f"`{folder}` holds no model.safetensors",
        hint="is the download complete? a base needs config.json and model*.safetensors",
    )


def read_tensor(tensor: StoredTensor) -> torch.Tensor:
    """The tensor's values, in a buffer of its own that may be changed in place.

    Read, not mapped: pages of a mapped file would count as this process's memory.
    """
    import torch

    values = torch.empty(tensor.nbytes, dtype=torch.uint8)
    view = values.numpy().data
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(tensor.offset)
        done = 0
        while done < tensor.nbytes:
            got = file.readinto(view[done:])
            if not got:
                raise CheckpointError(
                    f"`{tensor.path}` ended inside tensor `{tensor.name}`",
                    hint="the file has changed since it was opened; download or copy it again",
                )
            done += got
    return values.view(torch_dtype(tensor.dtype)).reshape(tensor.shape)


def torch_dtype(dtype: str) -> torch.dtype:
    import torch

    names = {
        "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
        "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
        "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
        "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    }  # fmt: skip
    found = getattr(torch, names[dtype])
    assert isinstance(found, torch.dtype)
    return found
