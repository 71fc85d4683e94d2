"""Opens an adapter of any known format, in PEFT's form: its config and its tensors' headers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from exporter.core.errors import AdapterError, UnsupportedError
from exporter.core.events import Report, silent
from exporter.core.gguf import SUFFIX
from exporter.core.safetensors import read_header
from exporter.inputs import gguf_adapter, mlx_adapter
from exporter.inputs.adapter_files import mlx_weights, read_config, read_weights
from exporter.inputs.adapter_kinds import (
    MERGED_BY_PEFT,
    is_set,
    refuse_unmergeable,
)
from exporter.inputs.adapter_spec import EMBEDDING, LINEAR, AdapterSpec, LoraPair
from exporter.inputs.find_adapter import FoundAdapter, find_adapter
from exporter.inputs.lazy_tensor import Tensor

MATRIX = 2  # dimensions
PREFIX = "base_model.model."

# A tensor of one adapted module: its module, how deep PEFT nested its wrappers, its role.
LORA_KEY = re.compile(r"(?P<module>.+?)(?P<nested>(\.base_layer)*)\.(?P<role>lora_\w+(\..+)?)")
ROWS_KEY = re.compile(r"(?P<module>.+?)(\.token_adapter)?\.trainable_tokens_delta")
WRAPPED = re.compile(r"\.(modules_to_save|original_module)\.(?=weight$)")


def open_adapter(
    place: Path,
    *,
    refuse: Callable[[dict[str, object], Path], None] = refuse_unmergeable,
    report: Report = silent,
) -> AdapterSpec:
    """Read an adapter's config and the headers of its weights.

    place: its folder, one of its files, or a path that find_adapter resolves. refuse: raises for a
    config that the caller cannot use; by default for one that cannot be merged. Raises AdapterError
    for a missing or damaged file, and what `refuse` raises.
    """
    found = find_adapter(place, report=report)
    folder = found.folder
    if found.weights is not None and found.weights.suffix == SUFFIX:
        config, tensors = gguf_adapter.read_adapter(found.weights)
        refuse(config, found.weights)
        spec = AdapterSpec(folder, config, (), weights=found.weights, origin="gguf", run=found.run)
        return sort_tensors(spec, tensors)
    config = read_config(folder)
    if mlx_adapter.is_mlx(config):
        return open_mlx(found, config, refuse=refuse, report=report)
    refuse(config, folder)
    held = read_weights(found, report=report)
    spec = AdapterSpec(
        folder,
        config,
        (),
        weights=held.files[0],
        files=held.files,
        read_by_peft=held.read_by_peft,
        run=found.run,
    )
    return sort_tensors(spec, held.tensors)


def open_mlx(
    found: FoundAdapter,
    stored: dict[str, object],
    *,
    refuse: Callable[[dict[str, object], Path], None],
    report: Report,
) -> AdapterSpec:
    """Open an adapter of mlx-lm's and put it into PEFT's form."""
    weights = found.weights or mlx_weights(found.folder, report=report)
    header = read_header(weights, error=AdapterError)
    config, tensors = mlx_adapter.as_peft(stored, header, found.folder, report=report)
    refuse(config, found.folder)
    return sort_tensors(
        AdapterSpec(found.folder, config, (), weights=weights, origin="mlx", run=found.run),
        tensors,
    )


def sort_tensors(adapter: AdapterSpec, tensors: dict[str, Tensor]) -> AdapterSpec:
    """Sort every tensor into its group of the spec.

    tensors: by stored name, A (rank, n_in) and B (n_out, rank) among them. Raises AdapterError for
    an empty adapter or an inconsistent pair, UnsupportedError for a tensor without a group.
    """
    if not tensors:
        raise AdapterError(
            "the adapter holds no tensors", hint="was it saved from a trained model?"
        )
    pairs: dict[tuple[str, int], dict[str, Tensor]] = {}
    groups: dict[str, dict[str, Tensor]] = {}
    for stored, tensor in without_copies(tensors).items():
        found = LORA_KEY.fullmatch(model_key(stored)) if adapter.kind == "LORA" else None
        if found and stored.startswith(PREFIX):
            place = found["module"], found["nested"].count("base_layer")
            group, name = pairs.setdefault(place, {}), found["role"]
        else:
            kind, name = group_of(stored, adapter.kind)
            group = groups.setdefault(kind, {})
        if name in group:
            raise stranger(stored)
        group[name] = tensor
    paired = tuple(pair(module, nested, halves) for (module, nested), halves in pairs.items())
    opened = replace(
        adapter,
        pairs=paired,
        values=groups.get("values", {}),
        saved=groups.get("saved", {}),
        rows=groups.get("rows", {}),
        tuner=groups.get("tuner", {}),
    )
    for one in paired:
        refuse_oddities(one, opened)
    return opened


def without_copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the copies that PEFT's save_embedding_layers adds to modules_to_save of an embedding.

    A copy has the wrapper's name; the trained values, (rows, columns) as well, have the plain name.
    PEFT does not read the copies either.
    """
    return {
        name: tensor
        for name, tensor in tensors.items()
        if (plain := WRAPPED.sub(".", name)) == name or plain not in tensors
    }


def group_of(stored: str, kind: str) -> tuple[str, str]:
    """The group of AdapterSpec that a tensor belongs to, and its name there.

    Raises UnsupportedError for a name without a group.
    """
    name = model_key(stored)
    if found := ROWS_KEY.fullmatch(name):
        return "rows", found["module"]
    if is_tuners(name, kind):
        return "tuner", name
    if not stored.startswith(PREFIX) or name.split(".")[-2:][0].startswith("lora_"):
        raise stranger(stored)
    if name.endswith((".base_layer.weight", ".base_layer.bias")):
        return "saved", name.replace(".token_adapter.", ".").replace(".base_layer.", ".")
    return "values", name.replace(".ln_tuning_layers.", ".")


def model_key(stored: str) -> str:
    """A tensor's name in the trained model."""
    return stored.removeprefix(PREFIX).removeprefix("base_model.")


def is_tuners(name: str, kind: str) -> bool:
    prefix = MERGED_BY_PEFT.get(kind)
    return prefix is not None and any(part.startswith(prefix) for part in name.split("."))


def stranger(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"the adapter holds `{name}`, which decant cannot place in a model",
        hint=f"PEFT's names begin with {PREFIX!r}; was it saved by another tool?",
    )


def pair(module: str, nested: int, found: dict[str, Tensor]) -> LoraPair:
    """The pair of one module: A (rank, n_in), B (n_out, rank) and further tensors.

    Raises AdapterError for half a pair, UnsupportedError for halves that are not matrices.
    """
    halves = EMBEDDING if found.keys() & set(EMBEDDING) else LINEAR
    for half in halves:
        if half not in found:
            raise AdapterError(
                f"`{PREFIX}{module}.{half}` is missing from the adapter", hint="save it again"
            )
        if len(found[half].shape) != MATRIX or 0 in found[half].shape:
            raise UnsupportedError(
                f"`{found[half].name}` is {list(found[half].shape)}: not a plain LoRA matrix",
                hint="adapters of convolutions cannot be merged: train without them as targets; an"
                " empty one was saved by DeepSpeed ZeRO-3 without gathering its parts first",
            )
    a, b = (found.pop(half) for half in halves)
    return LoraPair(module, a, b, nested, found, halves == EMBEDDING)


def refuse_oddities(one: LoraPair, adapter: AdapterSpec) -> None:
    """Raise AdapterError for halves of different rank, and for tensors that the config excludes."""
    # BD-LoRA stores only blocks of A or B
    if one.a.shape[0] != one.b.shape[1] and not is_set(adapter.config.get("use_bdlora")):
        raise AdapterError(
            f"the adapter's matrices for `{one.module}` do not fit each other:"
            f" A is {list(one.a.shape)}, B is {list(one.b.shape)}",
            hint="the file is damaged or was put together from two adapters",
        )
    if one.extras and adapter.is_plain:
        raise AdapterError(
            f"the adapter holds `{next(iter(one.extras.values())).name}`, which its config does"
            " not mention",
            hint="its config and its weights come from different trainings; copy both again",
        )
