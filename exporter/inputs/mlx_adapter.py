"""Puts adapters that mlx-lm or mlx-vlm trained into PEFT's form.

mlx-lm keeps A as (n_in, rank) and B as (rank, n_out), multiplies by `scale` whatever the rank, and
has one pair for all experts of a layer: https://github.com/ml-explore/mlx-lm (mlx_lm/tuner).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.core.errors import AdapterError, UnsupportedError
from exporter.core.events import Report, Warn
from exporter.core.safetensors import StoredTensor
from exporter.inputs.find_adapter import CONFIG
from exporter.inputs.lazy_tensor import Turned

if TYPE_CHECKING:
    from exporter.inputs.adapter_spec import AdapterSpec
    from exporter.inputs.checkpoint import Checkpoint
    from exporter.inputs.lazy_tensor import Tensor

PREFIX = "base_model.model."
ROLES = {"lora_a": "lora_A", "lora_b": "lora_B", "A": "lora_A", "B": "lora_B"}
OF_VLM = ("rank", "alpha")
"""The whole config of mlx-vlm before 2026, when its matrices were called A and B."""
MARKS = ("fine_tune_type", "lora_parameters", "lora_layers")
STACK = 3  # dimensions of the experts' B
EMBEDDING = re.compile(r"(?!embed_out$)(.*embed.*|w[tp]e)")
# mlx-lm's names of stacked experts, which a checkpoint of the hub keeps apart
EXPERTS = re.compile(r"(?P<parent>.+)\.(switch_mlp|switch_glu|experts)\.(?P<part>\w+)")
MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
OF_MIXTRAL = "block_sparse_moe"
CHANGED = {
    "falcon_h1": "it multiplies Falcon-H1's weights by the config's multipliers when it loads them",
}
"""Model types whose weights mlx-lm changes, and how: its pairs fit only the changed weights."""
FUSE = "fuse it with mlx-lm first: mlx_lm.fuse --dequantize"
AGAIN = "restore the file that mlx-lm wrote"


def is_mlx(config: Mapping[str, object]) -> bool:
    """Whether an adapter's config is mlx-lm's and not PEFT's."""
    is_vlm = all(name in config for name in OF_VLM)
    return "peft_type" not in config and (is_vlm or any(mark in config for mark in MARKS))


def as_peft(
    config: Mapping[str, object],
    tensors: Mapping[str, StoredTensor],
    folder: Path,
    *,
    report: Report,
) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Convert config and tensors to PEFT's form and names.

    tensors: lora_a (n_in, rank), lora_b (rank, n_out), m (n_out,); of experts lora_a (experts,
    rank, n_in), lora_b (experts, n_out, rank). Raises AdapterError for a config without rank or
    scale, UnsupportedError for a tensor or a kind of training without a counterpart in PEFT.
    """
    kind = config.get("fine_tune_type") or ("dora" if config.get("use_dora") else "lora")
    base = config.get("model")
    common = {
        "peft_type": "LORA",
        "base_model_name_or_path": base if isinstance(base, str) else None,
    }
    if kind == "full":
        return {**common, "r": 1, "lora_alpha": 1}, {
            f"{PREFIX}{name}": replace(tensor, name=f"{PREFIX}{name}")
            for name, tensor in tensors.items()
        }
    if kind not in ("lora", "dora"):
        raise UnsupportedError(
            f"`{folder}` was trained by mlx-lm as {kind!r}, which decant does not know",
            hint=FUSE,
        )
    rank, scale = scaling(config, folder, report=report)
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, role = name.rpartition(".")
        experts = experts_of(module, tensors)
        if experts and role in ROLES:
            renamed |= of_experts(module, role, tensor, experts)
        else:
            stem = peft_name(module, role, folder)
            renamed[stem] = replace(tensor, name=stem) if role == "m" else Turned(stem, tensor)
    return {**common, "r": rank, "lora_alpha": scale * rank, "use_dora": kind == "dora"}, renamed


def scaling(config: Mapping[str, object], folder: Path, *, report: Report) -> tuple[int, float]:
    """The rank and the factor of the matrices' product. Raises AdapterError without them."""
    parameters = config.get("lora_parameters")
    found = parameters if isinstance(parameters, dict) else {}
    is_vlm = parameters is None and all(name in config for name in OF_VLM)
    if is_vlm:
        found = {"rank": config["rank"], "scale": config["alpha"]}
    rank, scale, alpha = found.get("rank"), number(found.get("scale")), number(found.get("alpha"))
    if type(rank) is not int or rank < 1 or scale is None:
        raise AdapterError(
            f"`{folder / CONFIG}` gives no rank and scale (lora_parameters={parameters!r})",
            hint=AGAIN,
        )
    if is_vlm:
        report(
            Warn(
                f"`{folder / CONFIG}` is mlx-vlm's: before April 2026 it multiplied by alpha ="
                f" {scale:g}, for some weeks after by alpha / rank; it is read as an earlier one's,"
                f" else pass --scale {1 / rank:g}"
            )
        )
        return rank, scale
    if alpha is None or alpha == rank or "lora_layers" not in config:
        return rank, scale  # later versions write alpha without using it
    if "use_dora" not in config:  # before May 2024
        return rank, scale * (alpha / rank)
    report(
        Warn(
            f"`{folder / CONFIG}` is of mlx-lm between May and September 2024: versions of May"
            f" multiply its scale {scale:g} by alpha / rank = {alpha / rank:g}, later ones do not;"
            f" it is read as a later one's, else pass --scale {alpha / rank:g}"
        )
    )
    return rank, scale


def number(value: object) -> float | None:
    """A setting as a finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def peft_name(module: str, role: str, folder: Path) -> str:
    """PEFT's name of a module's lora_a, lora_b or m. Raises UnsupportedError for others."""
    is_embedding = EMBEDDING.fullmatch(module.rpartition(".")[2]) is not None
    if role in ROLES:
        named = ROLES[role].replace("_", "_embedding_") if is_embedding else f"{ROLES[role]}.weight"
        return f"{PREFIX}{module}.{named}"
    if role == "m" and not is_embedding:
        return f"{PREFIX}{module}.lora_magnitude_vector"
    reason = (
        "peft's DoRA of an embedding keeps a length for each column, mlx-lm's for each token"
        if role == "m"
        else "mlx-lm's adapters hold lora_a, lora_b and m"
    )
    raise UnsupportedError(
        f"`{folder}` holds `{module}.{role}`, which cannot be read: {reason}",
        hint=FUSE,
    )


def experts_of(module: str, tensors: Mapping[str, StoredTensor]) -> int:
    """The number of experts that share a module's matrices; 0 for a plain module."""
    b = tensors.get(f"{module}.lora_b")
    stacked = b is not None and len(b.shape) == STACK and EXPERTS.fullmatch(module)
    return b.shape[0] if b is not None and stacked else 0


def of_experts(
    module: str, role: str, tensor: StoredTensor, experts: int
) -> dict[str, StoredTensor]:
    """One matrix per expert under a checkpoint's names, each a slice of the file.

    tensor: B (experts, n_out, rank); A (experts, rank, n_in), or (rank * experts, n_in) before
    October 2025. Raises AdapterError if its rows do not divide evenly among the experts.
    """
    found = EXPERTS.fullmatch(module)
    assert found is not None
    parent, part = found["parent"].removesuffix(".experts"), found["part"]  # Gemma 4's
    if parent.endswith(f".{OF_MIXTRAL}"):
        part = MIXTRAL.get(part, part)
    columns, count = tensor.shape[-1], math.prod(tensor.shape)
    if count % (experts * columns):
        raise AdapterError(
            f"`{tensor.name}` is {list(tensor.shape)}: no matrix for each of {experts} experts",
            hint="the file is damaged; copy it again",
        )
    shape, step = (count // (experts * columns), columns), tensor.nbytes // experts
    names = [
        f"{PREFIX}{parent}.experts.{expert}.{part}.{ROLES[role]}.weight"
        for expert in range(experts)
    ]
    return {
        name: replace(tensor, name=name, shape=shape, offset=tensor.offset + place * step)
        for place, name in enumerate(names)
    }


def check_base(adapter: AdapterSpec, checkpoint: Checkpoint) -> None:
    """Raise UnsupportedError for a base whose weights mlx-lm trains in another form."""
    kind = str(checkpoint.config.get("model_type"))
    if kind in CHANGED and adapter.pairs:
        raise UnsupportedError(
            f"`{adapter.folder}` was trained by mlx-lm and cannot be added to"
            f" `{checkpoint.folder}`: {CHANGED[kind]}",
            hint=FUSE,
        )
