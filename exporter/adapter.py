"""An adapter's folder, as PEFT saves it: what it was trained on and its pairs of matrices."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

from exporter.core.errors import AdapterError, UnsupportedError
from exporter.core.files import read_json_object, sha256_file
from exporter.core.folders import model_name
from exporter.core.safetensors import StoredTensor, read_header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MATRIX = 2  # dimensions
DEFAULT_RANK = 8  # and alpha: LoraConfig's own
PREFIX = "base_model.model."
HALVES = (".lora_A.weight", ".lora_B.weight")

# Settings that change what a merge must do beyond scale * B @ A, with how they look when off.
BEYOND_PLAIN = {
    "use_dora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "modules_to_save": [],
    "trainable_token_indices": {},
    "target_parameters": [],
    "layer_replication": [],
    "megatron_config": {},
    "alora_invocation_tokens": [],
    "use_qalora": False,
    "use_bdlora": {},
    "arrow_config": {},
    "velora_config": {},
    "monteclora_config": {},
    "kasa_config": {},
}
# Ways to start training that leave the base as it was; the others change it or need a replay.
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two matrices of one adapted module: its update is scale * B @ A."""

    module: str
    """The module's name in the model that was trained, such as model.layers.0.mlp.up_proj."""
    a: StoredTensor  # (rank, n_in)
    b: StoredTensor  # (n_out, rank)

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """An opened adapter; no weight has been read."""

    folder: Path
    config: dict[str, object]
    pairs: tuple[LoraPair, ...]

    @property
    def name(self) -> str:
        """What a person would call it; `checkpoint-50` alone says too little."""
        folder = self.folder.resolve()
        name = f"{folder.parent.name}-{folder.name}"
        return name if is_checkpoint(folder) else model_name(folder)

    @property
    def base(self) -> str | None:
        """The base model it was trained on: a hub name or a path, as the trainer wrote it."""
        named = self.config.get("base_model_name_or_path")
        return named if isinstance(named, str) and named else None

    def sha256(self) -> str:
        """Identifies config and weights together."""
        parts = (sha256_file(self.folder / name) for name in (CONFIG, WEIGHTS))
        return hashlib.sha256("".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Scaling:
    """What one module's update is multiplied by, as its adapter's config says."""

    rank: int
    alpha: float
    value: float
    """alpha / rank, or alpha / sqrt(rank) with rsLoRA."""


def scaling_of(adapter: AdapterSpec, pair: LoraPair) -> Scaling:
    """PEFT's rule: a pattern that fits the end of the module's name goes before r and lora_alpha.

    Raises AdapterError for a config that makes no sense, and for a rank that the matrices
    do not have: PEFT would refuse such an adapter too.
    """
    config = adapter.config
    rank = by_pattern(adapter, "rank_pattern", pair.module, config.get("r", DEFAULT_RANK))
    alpha = by_pattern(
        adapter, "alpha_pattern", pair.module, config.get("lora_alpha", DEFAULT_RANK)
    )
    if rank != pair.rank:
        raise AdapterError(
            f"the adapter's config says rank {rank:g} for `{pair.module}`,"
            f" its matrices have {pair.rank}",
            hint="its config and its weights are not of one training; copy both again",
        )
    divisor = math.sqrt(pair.rank) if config.get("use_rslora") else pair.rank
    return Scaling(pair.rank, alpha, alpha / divisor)


def by_pattern(adapter: AdapterSpec, setting: str, module: str, default: object) -> float:
    """The number for a module: of the first pattern that fits, else `default`."""
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


def is_checkpoint(folder: Path) -> bool:
    head, _, step = folder.name.partition("-")
    return head == "checkpoint" and step.isdecimal()


def open_adapter(folder: Path) -> AdapterSpec:
    """Read an adapter's config and the header of its weights.

    Raises AdapterError for a missing or damaged file, UnsupportedError, by name, for
    anything but plain LoRA on linear layers (with rsLoRA and rank or alpha patterns).
    """
    if not folder.is_dir():
        raise AdapterError(
            f"there is no adapter folder `{folder}`",
            hint="name the folder that holds adapter_config.json",
        )
    config = read_json_object(folder / CONFIG, error=AdapterError, hint=hint_for_missing(folder))
    refuse_other_kinds(config, folder)
    if not (folder / WEIGHTS).exists():
        if (folder / "adapter_model.bin").exists():
            raise UnsupportedError(
                f"`{folder}` holds its weights as adapter_model.bin, a pickle",
                hint="save it again with a recent peft, which writes adapter_model.safetensors",
            )
        raise AdapterError(f"`{folder / WEIGHTS}` is missing", hint="copy the whole adapter folder")
    return AdapterSpec(folder, config, pair_up(read_header(folder / WEIGHTS, error=AdapterError)))


def hint_for_missing(folder: Path) -> str:
    checkpoints = [child for child in folder.iterdir() if is_checkpoint(child)]
    if checkpoints:
        newest = max(checkpoints, key=lambda child: int(child.name.partition("-")[2]))
        return f"this looks like a training run; its newest adapter is `{newest}`"
    if (folder / "config.json").exists():
        return "this looks like a whole model; to convert it as it is, pass it as --base alone"
    return "name the folder that PEFT's save_pretrained wrote"


def refuse_other_kinds(config: dict[str, object], folder: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedError(
            f"`{folder}` is a {kind} adapter; only LORA can be merged so far",
            hint=merge_yourself(folder),
        )
    for setting, off in BEYOND_PLAIN.items():
        value = config.get(setting)
        if value is not None and value != off and value not in ({}, [], False):
            raise UnsupportedError(
                f"`{folder}` uses {setting}={value!r}, which cannot be merged so far",
                hint=merge_yourself(folder),
            )
    init = config.get("init_lora_weights")
    if init not in PLAIN_INITS:
        raise UnsupportedError(
            f"`{folder}` was started with init_lora_weights={init!r}, which changes the base",
            hint="convert it first: save_pretrained(path_initial_model_for_weight_conversion=…)",
        )


def merge_yourself(folder: Path) -> str:
    return (
        "merge it with peft, then export the result with --base alone: "
        f"AutoPeftModelForCausalLM.from_pretrained({folder.name!r})"
        ".merge_and_unload().save_pretrained('merged')"
    )


def pair_up(tensors: dict[str, StoredTensor]) -> tuple[LoraPair, ...]:
    """Match every A with its B; a tensor that is neither is refused by name."""
    halves: dict[str, dict[str, StoredTensor]] = {}
    strangers = []
    for name, tensor in tensors.items():
        half = next((half for half in HALVES if name.endswith(half)), None)
        if half is None or not name.startswith(PREFIX) or len(tensor.shape) != MATRIX:
            strangers.append(name)
        else:
            module = name.removeprefix(PREFIX).removesuffix(half)
            halves.setdefault(module, {})[half] = tensor
    if strangers:
        raise UnsupportedError(
            f"the adapter holds `{strangers[0]}`, which is no plain LoRA matrix"
            f" ({len(strangers)} such tensors)",
            hint="only linear layers' lora_A.weight and lora_B.weight can be merged so far",
        )
    if not halves:
        raise AdapterError(
            "the adapter holds no tensors", hint="was it saved from a trained model?"
        )
    return tuple(pair(module, found) for module, found in halves.items())


def pair(module: str, found: dict[str, StoredTensor]) -> LoraPair:
    for half in HALVES:
        if half not in found:
            raise AdapterError(
                f"`{PREFIX}{module}{half}` is missing from the adapter", hint="save it again"
            )
    both = LoraPair(module, *(found[half] for half in HALVES))
    if both.a.shape[0] != both.b.shape[1]:
        raise AdapterError(
            f"the adapter's matrices for `{module}` do not fit each other:"
            f" A is {list(both.a.shape)}, B is {list(both.b.shape)}",
            hint="the file is damaged or was put together from two adapters",
        )
    return both
