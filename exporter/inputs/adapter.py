"""An adapter in PEFT's form: the config of its training and the tensors it holds."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal

from exporter.core.atomic_file import sha256_file
from exporter.core.errors import AdapterError, UnsupportedError
from exporter.core.events import Report, silent
from exporter.core.gguf import SUFFIX
from exporter.core.paths import model_name
from exporter.core.safetensors import read_header
from exporter.inputs import gguf_adapter, mlx_adapter
from exporter.inputs.adapter_files import mlx_weights, read_config, read_weights
from exporter.inputs.adapter_kinds import (
    MERGED_BY_PEFT,
    is_set,
    needs_peft_layer,
    refuse_unmergeable,
)
from exporter.inputs.find_adapter import CONFIG, USUAL, WEIGHTS, FoundAdapter, find_adapter
from exporter.inputs.lazy_tensor import Tensor

__all__ = ["CONFIG", "WEIGHTS", "AdapterSpec", "LoraPair", "open_adapter"]

Origin = Literal["peft", "mlx", "gguf"]
"""The format that an adapter is stored in."""
MATRIX = 2  # dimensions
DEFAULT_RANK = 8  # LoraConfig's default of both rank and alpha
PREFIX = "base_model.model."

# A tensor of one adapted module: its module, how deep PEFT nested its wrappers, its role.
LORA_KEY = re.compile(r"(?P<module>.+?)(?P<nested>(\.base_layer)*)\.(?P<role>lora_\w+(\..+)?)")
ROWS_KEY = re.compile(r"(?P<module>.+?)(\.token_adapter)?\.trainable_tokens_delta")
WRAPPED = re.compile(r"\.(modules_to_save|original_module)\.(?=weight$)")
LINEAR = ("lora_A.weight", "lora_B.weight")
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two matrices of one adapted module: its update is scale * B @ A, shape (n_out, n_in)."""

    module: str
    """The module's name in the trained model, such as model.layers.0.mlp.up_proj."""
    a: Tensor  # (rank, n_in); with experts (n_experts * rank, n_in)
    b: Tensor  # (n_out, rank); with experts (n_out, rank * n_experts)
    nested: int = 0
    """Depth of PEFT's nested wrappers around this parameter; above 0 only for experts."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """Further tensors of a LoRA variant, by their name after the module's."""
    embedding: bool = False
    """Whether the module is an embedding, whose update is scale * (B @ A) transposed."""

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their name after the module's, as in the file."""
        a, b = EMBEDDING if self.embedding else LINEAR
        return {a: self.a, b: self.b, **self.extras}


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """An opened adapter; no weight has been read."""

    folder: Path
    config: dict[str, object]
    pairs: tuple[LoraPair, ...]
    """The matrices of a LoRA, one pair per module; empty for other tuners."""
    values: dict[str, Tensor] = field(default_factory=dict)
    """Whole tensors that replace the base's (modules_to_save, biases), by name in the model."""
    saved: dict[str, Tensor] = field(default_factory=dict)
    """The base's embeddings, saved beside what was trained on them."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """New values of some rows of an embedding (trainable tokens), by module."""
    tuner: dict[str, Tensor] = field(default_factory=dict)
    """All other tensors of a tuner that is not a LoRA, by name in the model."""
    weights: Path = Path()
    files: tuple[Path, ...] = ()
    """All files with tensors; `weights` is only the first."""
    read_by_peft: bool = False
    """Whether PEFT itself can load the tensors from the folder."""
    origin: Origin = "peft"
    """The format on disk; config and tensors are always in PEFT's form."""
    renamed: bool = False
    """Whether the modules have the names of a GGUF base, and the config matches them."""

    @property
    def kind(self) -> str:
        return str(self.config.get("peft_type"))

    @property
    def is_plain(self) -> bool:
        """Whether every update is a scaled product, which needs no layer of PEFT's."""
        return self.kind == "LORA" and not needs_peft_layer(self.config)

    @property
    def name(self) -> str:
        """The adapter's name for people."""
        if self.origin == "gguf":
            return self.weights.stem.removesuffix(".lora")
        if self.weights.name and self.weights.is_dir():
            return model_name(self.weights)
        name = model_name(self.folder)
        return name if self.place == self.folder else f"{name}-{self.weights.stem}"

    @property
    def place(self) -> Path:
        """The path that opens it again: its folder, or its file if that has an unusual name."""
        is_usual = self.weights.name in ("", *USUAL) or len(self.files) > 1
        return self.folder if is_usual else self.weights

    @property
    def base(self) -> str | None:
        """The base model it was trained on: a hub name or a path, as the trainer wrote it."""
        named = self.config.get("base_model_name_or_path")
        return named if isinstance(named, str) and named else None

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of the adapter."""
        paired = [tensor for pair in self.pairs for tensor in pair.tensors.values()]
        groups = (self.values, self.saved, self.rows, self.tuner)
        return paired + [tensor for group in groups for tensor in group.values()]

    def sha256(self) -> str:
        """Hash of config and weights together."""
        config = [] if self.origin == "gguf" else [self.folder / CONFIG]
        is_folder = self.weights.is_dir()
        held = sorted(self.weights.iterdir()) if is_folder else self.files or [self.weights]
        files = [*config, *held]
        parts = (sha256_once(path, path.stat().st_mtime_ns) for path in files)
        return hashlib.sha256("".join(parts).encode()).hexdigest()


@cache
def sha256_once(path: Path, changed_ns: int) -> str:
    """The hash of a file at one modification time; several steps of an export need it."""
    del changed_ns
    return sha256_file(path)


@dataclass(frozen=True, slots=True)
class Scaling:
    """The factor of one module's update, as the adapter's config gives it."""

    rank: int
    alpha: float
    value: float
    """alpha / rank, or alpha / sqrt(rank) with rsLoRA."""


def scaling_of(adapter: AdapterSpec, pair: LoraPair, *, experts: int = 1) -> Scaling:
    """The scaling of one module by PEFT's rule: patterns that match its name go first.

    Raises AdapterError for a malformed config, and for a rank that differs from the matrices': PEFT
    refuses such an adapter, too.
    """
    config, stored = adapter.config, pair.rank // experts
    rank = by_pattern(adapter, "rank_pattern", pair.module, config.get("r", DEFAULT_RANK))
    alpha = by_pattern(
        adapter, "alpha_pattern", pair.module, config.get("lora_alpha", DEFAULT_RANK)
    )
    if rank != stored or stored * experts != pair.rank:
        raise AdapterError(
            f"the adapter's config says rank {rank:g} for `{pair.module}`,"
            f" its matrices have {pair.rank / experts:g}",
            hint="its config and its weights come from different trainings; copy both again",
        )
    divisor = math.sqrt(stored) if config.get("use_rslora") else stored
    return Scaling(stored, alpha, alpha / divisor)


def by_pattern(adapter: AdapterSpec, setting: str, module: str, default: object) -> float:
    """The number for a module: from the first pattern that matches, else `default`.

    Raises AdapterError for a malformed pattern or number.
    """
    patterns = adapter.config.get(setting) or {}
    try:
        assert isinstance(patterns, dict)
        fits = (key for key in patterns if re.match(rf"(.*\.)?({key})$", module))
        number = patterns.get(next(fits, ""), default)
        assert isinstance(number, int | float)
        assert math.isfinite(number)
    except (AssertionError, re.error) as error:
        raise AdapterError(
            f"`{adapter.folder / CONFIG}` gives no number for `{module}`"
            f" ({setting} {patterns!r}, default {default!r})",
            hint="restore the file that PEFT wrote",
        ) from error
    return number


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
        spec = AdapterSpec(folder, config, (), weights=found.weights, origin="gguf")
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
        AdapterSpec(found.folder, config, (), weights=weights, origin="mlx"), tensors
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

    They are the wrapper's names, beside the trained values under their plain name, (rows, columns)
    both; PEFT does not read them either.
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
