"""Bases that mlx-lm quantized: the affine method here, the floating-point ones in mlx_float.

A row is divided into groups; a value is its group's scale times a code plus its group's bias. The
codes are packed end to end, lowest bits first, in 32-bit words. Values are computed in float32, as
in MLX's kernels, and not rounded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.core.safetensors import LENGTH_NBYTES, StoredTensor
from exporter.inputs.lazy_tensor import Tensor, nbytes_of, read_tensor
from exporter.inputs.mlx_adapter import EXPERTS, MIXTRAL, OF_MIXTRAL
from exporter.inputs.quantized.mlx_float import MODES, FloatWeight, slice_of

if TYPE_CHECKING:
    import torch

SETTINGS = "quantization"
BITS = (1, 2, 3, 4, 5, 6, 8)
PARTS = ("weight", "scales", "biases")
WORD = 32  # bits
CHUNK = 1 << 20  # codes dequantized per step
CHANGED = ("falcon_h1", "qwen3_next", "qwen3_5", "qwen3_5_moe", "gpt2", "mamba", "mamba2")
"""Model types whose values mlx-lm changes without renaming them: norms, factors, transposes."""
ORIGINAL = "use the original release of this base, from which it was converted for MLX"
AGAIN = "download or copy the folder again"


@dataclass(frozen=True, slots=True)
class Affine:
    """A weight in codes of a few bits, with a scale and a bias per group of a row."""

    name: str
    shape: tuple[int, ...]
    packed: StoredTensor
    scales: StoredTensor
    biases: StoredTensor
    group: int
    bits: int
    dtype: str = "F32"

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.dtype, self.shape)

    def read(self) -> torch.Tensor:
        """The values, (…, n_in) in float32."""
        import torch

        columns = self.shape[-1]
        packed = read_tensor(self.packed).view(torch.uint8).reshape(-1, columns * self.bits // 8)
        scales = read_tensor(self.scales).float().reshape(packed.shape[0], -1, 1)
        biases = read_tensor(self.biases).float().reshape(packed.shape[0], -1, 1)
        out = torch.empty(packed.shape[0], columns)
        rows = max(1, CHUNK // columns)
        for at in range(0, len(out), rows):
            some = slice(at, at + rows)
            codes = unpacked(packed[some], self.bits).reshape(-1, columns // self.group, self.group)
            values = codes.float() * scales[some] + biases[some]
            out[some] = values.reshape(-1, columns)
        return out.reshape(self.shape)

    def at(self, place: int, name: str) -> Affine:
        """The weight of one expert."""
        return replace(
            self,
            name=name,
            shape=self.shape[1:],
            packed=slice_of(self.packed, place),
            scales=slice_of(self.scales, place),
            biases=slice_of(self.biases, place),
        )


def unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """(rows, bytes) → (rows, codes): codes of `bits` bits packed end to end, lowest bit first."""
    import torch

    if bits == 8:  # noqa: PLR2004 - a byte
        return packed
    rows, places = len(packed), torch.arange(8, dtype=torch.uint8)
    if 8 % bits == 0:
        codes: torch.Tensor = (packed[..., None] >> places[::bits]) & (2**bits - 1)
        return codes.reshape(rows, -1)
    each = ((packed[..., None] >> places) & 1).reshape(rows, -1, bits)
    summed: torch.Tensor = (each.int() << places[:bits].int()).sum(-1)
    return summed


def is_quantized(config: Mapping[str, object]) -> bool:
    """Whether mlx-lm quantized the model: its settings are under a key that only mlx-lm writes."""
    settings = config.get(SETTINGS)
    return isinstance(settings, dict) and "bits" in settings and "group_size" in settings


def dequantized(tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> dict[str, Tensor]:
    """Replace MLX's weights by plain ones of shape (…, n_out, n_in), in the same order.

    Raises UnsupportedError for an unknown mode, CheckpointError for parts that do not fit together.
    """
    plain: dict[str, Tensor] = {}
    for name, stored in tensors.items():
        stem, _, role = name.rpartition(".")
        if role in ("scales", "biases") and f"{stem}.weight" in tensors:
            continue
        found = weight_of(stem, tensors, config) if f"{stem}.scales" in tensors else stored
        for one in apart(found):
            plain[one.name] = one
    return plain


def weight_of(
    stem: str, tensors: Mapping[str, Tensor], config: Mapping[str, object]
) -> Affine | FloatWeight:
    """The weight (…, n_out, n_in) made of packed (…, words), scales and biases (…, groups).

    The config has settings for all weights or for a single one. Raises UnsupportedError for an
    unknown mode, CheckpointError for parts that do not fit together.
    """
    settings = config[SETTINGS]
    assert isinstance(settings, dict)
    own = settings.get(stem)
    parameters = {**settings, **(own if isinstance(own, dict) else {})}
    mode = str(parameters.get("mode", "affine"))
    packed, scales, biases = (tensors.get(f"{stem}.{role}") for role in PARTS)
    if mode != "affine" and mode not in MODES:
        raise UnsupportedError(
            f"`{stem}.weight` is quantized by MLX as {mode}, which decant does not undo",
            hint=ORIGINAL,
        )
    if not (isinstance(packed, StoredTensor) and isinstance(scales, StoredTensor)):
        raise damaged(stem, "its weight and scales do not lie in safetensors")
    if mode in MODES:
        shape = shape_of(stem, packed, scales, MODES[mode].group, MODES[mode].bits)
        if scales.dtype != "U8" or biases is not None:
            raise damaged(stem, f"its scales are {scales.dtype}, and {mode} has one byte for each")
        return FloatWeight(f"{stem}.weight", shape, packed, scales, mode)
    group, bits = parameters.get("group_size"), parameters.get("bits")
    if type(group) is not int or type(bits) is not int or bits not in BITS or group < 1:
        raise damaged(stem, f"its config says {bits!r} bits in groups of {group!r}")
    shape = shape_of(stem, packed, scales, group, bits)
    if not isinstance(biases, StoredTensor) or biases.shape != scales.shape:
        raise damaged(stem, f"it has no biases of {list(scales.shape)}")
    return Affine(f"{stem}.weight", shape, packed, scales, biases, group, bits)


def shape_of(
    stem: str, packed: StoredTensor, scales: StoredTensor, group: int, bits: int
) -> tuple[int, ...]:
    """The shape of the plain weight, (…, n_in); raises CheckpointError if the parts differ."""
    shape = (*scales.shape[:-1], scales.shape[-1] * group)
    if packed.dtype != "U32" or packed.shape != (*shape[:-1], shape[-1] * bits // WORD):
        raise damaged(
            stem, f"{packed.dtype} {list(packed.shape)} is no {list(shape)} of {bits} bits"
        )
    return shape


def damaged(stem: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"`{stem}.weight`, quantized by MLX, cannot be dequantized: {why}", hint=AGAIN
    )


def apart(tensor: Tensor) -> list[Tensor]:
    """Split a stack (experts, n_out, n_in) into tensors under the hub's names.

    Any other tensor is returned unchanged.
    """
    found = EXPERTS.fullmatch(tensor.name.removesuffix(".weight"))
    if found is None or len(tensor.shape) != 3:  # noqa: PLR2004 - (experts, n_out, n_in)
        return [tensor]
    parent, part = found["parent"], found["part"]
    if parent.endswith(f".{OF_MIXTRAL}"):
        part = MIXTRAL.get(part, part)
    names = [f"{parent}.experts.{expert}.{part}.weight" for expert in range(tensor.shape[0])]
    if isinstance(tensor, StoredTensor):
        return [slice_of(tensor, place, name) for place, name in enumerate(names)]
    assert isinstance(tensor, Affine | FloatWeight)
    return [tensor.at(place, name) for place, name in enumerate(names)]


def refuse_changed(tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> None:
    """Raise UnsupportedError for a base whose values mlx-lm has changed.

    It checks the model type, and convolutions by their more than two dimensions, (out, k, in).
    """
    kind = str(config.get("model_type"))
    convolutions = [name for name, one in tensors.items() if "conv" in name and len(one.shape) > 2]  # noqa: PLR2004
    if kind not in CHANGED and not convolutions:
        return
    paths = {one.path for one in tensors.values() if isinstance(one, StoredTensor)}
    if any(format_of(path) == "mlx" for path in paths):
        raise UnsupportedError(
            f"this base was converted for MLX, which keeps a {kind} in another form",
            hint=ORIGINAL,
        )


def format_of(path: Path) -> str:
    """The writer named in a safetensors file's metadata: pt, mlx, …"""
    if path.suffix != ".safetensors":
        return ""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_NBYTES), "little")
        metadata = json.loads(file.read(length)).get("__metadata__")
    return str(metadata.get("format", "")) if isinstance(metadata, dict) else ""
