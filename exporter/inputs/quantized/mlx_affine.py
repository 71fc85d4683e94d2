"""Bases that mlx-lm converted: their quantization undone, tensor by tensor.

Here the affine one, in mlx_float the others. A row is cut into groups; a value is its group's
scale times a code plus its group's bias. The codes lie one after the other, lowest bits first, in
32-bit words. Worked out in float32, as MLX's kernels do when they multiply, and not rounded.
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
CHUNK = 1 << 20  # codes worked out at a time
CHANGED = ("falcon_h1", "qwen3_next", "qwen3_5", "qwen3_5_moe", "gpt2", "mamba", "mamba2")
"""Kinds of models whose values mlx-lm changes under the hub's names: norms, factors, transposes."""
ORIGINAL = "use the original release of this base, from which it was converted for MLX"
AGAIN = "download or copy the folder again"


@dataclass(frozen=True, slots=True)
class Affine:
    """A weight in codes of a few bits, with a scale and a bias for each group of a row."""

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
        """(…, n_in) in float32."""
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
    """(rows, bytes) → (rows, codes), codes of `bits` bits that lie end to end, lowest bit first."""
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
    """Whether mlx-lm quantized the model: its settings have a key of their own."""
    settings = config.get(SETTINGS)
    return isinstance(settings, dict) and "bits" in settings and "group_size" in settings


def dequantized(tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> dict[str, Tensor]:
    """A checkpoint's tensors with plain ones where MLX's were, in the same order.

    Raises UnsupportedError for a mode that is not known here, CheckpointError where the parts of
    a weight do not fit each other.
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
    """A weight by its parts and by what the config says of it, or of all."""
    settings = config[SETTINGS]
    assert isinstance(settings, dict)
    own = settings.get(stem)
    said = {**settings, **(own if isinstance(own, dict) else {})}
    mode = str(said.get("mode", "affine"))
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
    group, bits = said.get("group_size"), said.get("bits")
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
    """The experts that MLX keeps in one tensor, each by its name on the hub; else the tensor."""
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
    """Raise UnsupportedError for a base of mlx-lm's whose values are others than the hub's."""
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
    """What the metadata of a safetensors file say that it was written by: pt, mlx, …"""
    if path.suffix != ".safetensors":
        return ""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_NBYTES), "little")
        metadata = json.loads(file.read(length)).get("__metadata__")
    return str(metadata.get("format", "")) if isinstance(metadata, dict) else ""
