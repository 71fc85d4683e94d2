"""An adapter's config and the places of its tensors, in PEFT's form."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from exporter.core.atomic_file import sha256_file
from exporter.core.errors import AdapterError
from exporter.core.paths import model_name
from exporter.inputs.adapter_kinds import needs_peft_layer
from exporter.inputs.find_adapter import CONFIG, USUAL
from exporter.inputs.lazy_tensor import Tensor

Origin = Literal["peft", "mlx", "gguf"]
"""The format that an adapter is stored in."""
DEFAULT_RANK = 8  # LoraConfig's default of both rank and alpha
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
    """Embeddings of the base, which PEFT saved beside their trained tensors."""
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
    run: Path | None = None
    """The training run that the user named, if decant chose this checkpoint of it."""

    @property
    def kind(self) -> str:
        return str(self.config.get("peft_type"))

    @property
    def is_plain(self) -> bool:
        """Whether every update is a scaled product, which needs no layer of PEFT's."""
        return self.kind == "LORA" and not needs_peft_layer(self.config)

    @property
    def name(self) -> str:
        """The adapter's name for people: of a training run that was named, the run's name."""
        return self.name_by(self.run)

    @property
    def exact_name(self) -> str:
        """The name that says which checkpoint of a training run it is."""
        return self.name_by(None)

    @property
    def checkpoint(self) -> str:
        """The checkpoint's name, if decant chose it in the training run; else empty."""
        return self.exact_name.removeprefix(f"{self.name}-") if self.run else ""

    def name_by(self, run: Path | None) -> str:
        if self.origin == "gguf":
            return self.weights.stem.removesuffix(".lora")
        if self.weights.name and self.weights.is_dir():
            return model_name(run or self.weights)
        name = model_name(run or self.folder)
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
