"""Bases that bitsandbytes quantized (NF4, FP4, LLM.int8), dequantized tensor by tensor.

Each value is computed in float32, a code times the scale of its block, and rounded once to the
model's type, bit for bit as bitsandbytes does. (bitsandbytes itself needs its compiled library;
this module reads the files without it.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.core.safetensors import StoredTensor
from exporter.inputs.lazy_tensor import Tensor, nbytes_of, read_tensor, torch_dtype

if TYPE_CHECKING:
    import torch

# QLoRA, appendix E: the quantiles of a normal distribution, with an exact zero
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# sign, two bits of exponent, one of mantissa, in twelfths; there is a negative zero
FP4 = tuple(
    sign * twelfths / 12 for sign in (1.0, -1.0) for twelfths in (0, 0.0625, 8, 12, 4, 6, 2, 3)
)
TABLES = {"nf4": NF4, "fp4": FP4}
FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
STATE = ".quant_state.bitsandbytes__"
STATE_MAX = 1 << 16  # bytes of JSON; it holds a dozen short fields
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # block sizes of bitsandbytes
CHUNK = 1 << 20  # values per step: a multiple of every block
INT8_STEP = 7.874015718698502e-3  # 1 / 127, as bitsandbytes writes it
AGAIN = "download or copy the folder again"
# model types that keep a weight as (n_in, n_out), which bitsandbytes transposes first
TURNED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")


@dataclass(frozen=True, slots=True)
class Nested:
    """Quantization of the block scales themselves."""

    absmax: Tensor
    table: Tensor
    block: int
    offset: float


@dataclass(frozen=True, slots=True)
class FourBit:
    """A weight in 4-bit codes, two per byte, the first in the high half."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    block: int
    packed: Tensor
    absmax: Tensor
    nested: Nested | None
    turned: bool
    """Whether it is quantized as the transpose of its shape in a plain checkpoint."""

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.dtype, self.shape)

    def read(self) -> torch.Tensor:
        import torch

        absmax = read_tensor(self.absmax)
        if self.nested:
            table, scales = read_tensor(self.nested.table), read_tensor(self.nested.absmax)
            absmax = table.index_select(0, absmax.reshape(-1).int())
            scale_blocks(absmax, scales, self.nested.block)
            absmax += self.nested.offset
        packed = read_tensor(self.packed).reshape(-1).view(torch.uint8)
        shape = self.shape[::-1] if self.turned else self.shape
        values = unpack(packed, absmax.reshape(-1).float(), self)
        values = values.reshape(shape)
        return values.T.contiguous() if self.turned else values


@dataclass(frozen=True, slots=True)
class EightBit:
    """An LLM.int8 weight: each row in whole steps of 1/127 of its largest value."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    codes: Tensor
    absmax: Tensor
    turned: bool

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.dtype, self.shape)

    def read(self) -> torch.Tensor:
        import torch

        codes, absmax = read_tensor(self.codes), read_tensor(self.absmax).reshape(-1, 1)
        values = torch.empty(codes.shape, dtype=torch_dtype(self.dtype))
        rows = max(1, CHUNK // max(1, codes.shape[1]))
        for at in range(0, codes.shape[0], rows):
            values[at : at + rows] = codes[at : at + rows] * absmax[at : at + rows] * INT8_STEP
        return values.T.contiguous() if self.turned else values


def unpack(packed: torch.Tensor, absmax: torch.Tensor, weight: FourBit) -> torch.Tensor:
    """The flat values (n,) of a weight in its type; uses a few MB besides.

    packed: (ceil(n / 2),) bytes; absmax: (blocks,) in float32.
    """
    import torch

    table = torch.tensor(TABLES[weight.kind], dtype=torch.float32)
    pairs = torch.stack([table.repeat_interleave(16), table.repeat(16)], dim=1)  # (byte, half)
    count = math.prod(weight.shape)
    out = torch.empty(count, dtype=torch_dtype(weight.dtype))
    for at in range(0, count, CHUNK):
        some = min(CHUNK, count - at)
        codes = packed[at // 2 : (at + some + 1) // 2].int()
        values = pairs.index_select(0, codes).view(-1)[:some]
        scale_blocks(values, absmax[at // weight.block :], weight.block)
        out[at : at + some] = values
    return out


def scale_blocks(values: torch.Tensor, absmax: torch.Tensor, block: int) -> None:
    """Multiply each run of `block` values by its scale, in place.

    values: (n,), the last run may be shorter; absmax: (ceil(n / block),).
    """
    full = len(values) // block
    values[: full * block].view(-1, block).mul_(absmax[:full, None])
    if full * block < len(values):
        values[full * block :].mul_(absmax[full])


def is_quantized(config: Mapping[str, object]) -> bool:
    """Whether a config says that bitsandbytes quantized the model."""
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        return False
    method = settings.get("quant_method")
    loaded = settings.get("load_in_4bit") or settings.get("load_in_8bit")
    return method == "bitsandbytes" or (method is None and bool(loaded))


def dequantized(tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> dict[str, Tensor]:
    """Replace bitsandbytes' weights by plain ones of their shape (n_out, n_in), in the same order.

    Reads the small states, no weight. Raises CheckpointError for a state that does not fit its
    weight.
    """
    plain: dict[str, Tensor] = {}
    used: set[str] = set()
    turned = config.get("model_type") in TURNED
    for name, stored in tensors.items():
        state = next((key for kind in TABLES if (key := f"{name}{STATE}{kind}") in tensors), None)
        scales = f"{name.removesuffix('weight')}SCB"
        if state:
            plain[name] = four_bit(name, tensors, state, turned=turned)
            used |= {state, *(f"{name}.{part}" for part in PARTS)}
        elif name.endswith(".weight") and scales in tensors:
            plain[name] = eight_bit(name, tensors, scales, model_dtype(config), turned=turned)
            used |= {scales, f"{name}_format"}
        else:
            plain[name] = stored
    kept = {name: tensor for name, tensor in plain.items() if name not in used}
    for name, tensor in kept.items():
        if name.endswith(".weight") and tensor.dtype in ("U8", "I8"):
            raise damaged(name, f"it is stored as {tensor.dtype}, and how it was quantized is not")
    return kept


def damaged(name: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"`{name}`, quantized by bitsandbytes, cannot be dequantized: {why}", hint=AGAIN
    )


def four_bit(name: str, tensors: Mapping[str, Tensor], state_name: str, *, turned: bool) -> FourBit:
    """The 4-bit weight of a name, with its plain shape (n_out, n_in), checked against its state."""
    state = read_state(tensors[state_name])
    kind = state_name.rpartition("__")[2]
    shape, block, dtype = state.get("shape"), state.get("blocksize"), state.get("dtype")
    stored = next((name for name, spelled in FLOATS.items() if spelled == dtype), None)
    if not isinstance(shape, list) or not is_shape(shape):
        raise damaged(name, f"its shape is {shape!r}")
    if type(block) is not int or block not in BLOCKS:
        raise damaged(name, f"its blocks have {block!r} values")
    if state.get("quant_type") != kind or stored is None:
        raise damaged(name, f"its state is {json.dumps(state)[:200]}")
    count = math.prod(shape)
    blocks = -(-count // block)
    absmax, nested = part(name, "absmax", blocks, tensors), None
    if "nested_blocksize" in state or f"{name}.nested_absmax" in tensors:
        nested = nested_scales(name, state, tensors, blocks)
    if (absmax.dtype == "U8") != (nested is not None):
        raise damaged(name, f"its scales are {absmax.dtype}")
    packed = tensors[name]
    if packed.nbytes != -(-count // 2):
        raise damaged(name, f"{packed.nbytes} bytes hold no {shape} of 4 bits each")
    plain = tuple(reversed(shape)) if turned else tuple(shape)
    return FourBit(name, stored, plain, kind, block, packed, absmax, nested, turned)


def nested_scales(
    name: str, state: Mapping[str, object], tensors: Mapping[str, Tensor], blocks: int
) -> Nested:
    """The nested scales of a weight: absmax (blocks / block,) and a table (256,), both float32."""
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if type(block) is not int or block <= 0 or state.get("nested_dtype") != "float32":
        raise damaged(name, f"its state is {json.dumps(state)[:200]}")
    if not isinstance(offset, float) or not math.isfinite(offset):
        raise damaged(name, f"the offset of its scales is {offset!r}")
    scales = part(name, "nested_absmax", -(-blocks // block), tensors)
    table = part(name, "nested_quant_map", 256, tensors)
    if scales.dtype != "F32" or table.dtype != "F32":
        raise damaged(name, f"its nested scales are {scales.dtype}")
    return Nested(scales, table, block, offset)


def part(name: str, suffix: str, count: int, tensors: Mapping[str, Tensor]) -> Tensor:
    """A helper tensor of a weight, checked to have the shape (count,)."""
    found = tensors.get(f"{name}.{suffix}")
    if found is None:
        raise damaged(name, f"`{name}.{suffix}` is missing")
    if math.prod(found.shape) != count:
        raise damaged(name, f"`{found.name}` has {math.prod(found.shape)} values, not {count}")
    return found


def eight_bit(
    name: str, tensors: Mapping[str, Tensor], scales_name: str, dtype: str, *, turned: bool
) -> EightBit:
    """The LLM.int8 weight of a name, (n_out, n_in), checked against its scales (n_out,).

    Raises UnsupportedError for the layout of an old GPU.
    """
    codes, scales, layout = tensors[name], tensors[scales_name], tensors.get(f"{name}_format")
    if codes.dtype != "I8" or len(codes.shape) != 2:  # noqa: PLR2004 - rows and columns
        raise damaged(name, f"it is {codes.dtype} {list(codes.shape)}")
    if scales.dtype != "F32" or math.prod(scales.shape) != codes.shape[0]:
        raise damaged(name, f"`{scales_name}` is {scales.dtype} {list(scales.shape)}")
    if layout is not None and any(small_bytes(layout)):
        raise UnsupportedError(
            f"`{name}` is stored in the column order of an old GPU",
            hint="save the model again with a recent bitsandbytes",
        )
    shape = codes.shape[::-1] if turned else codes.shape
    return EightBit(name, dtype, shape, codes, scales, turned)


def model_dtype(config: Mapping[str, object]) -> str:
    """The type in the config that a model computes in; LLM.int8 stores none per weight."""
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            for name, spelled in FLOATS.items():
                if str(place.get(key)).removeprefix("torch.") == spelled:
                    return name
    return "F16"  # the type that LLM.int8 was made for


def read_state(tensor: Tensor) -> dict[str, object]:
    """The JSON state in a tensor of bytes (n,). Raises CheckpointError if it is damaged."""
    try:
        state = json.loads(small_bytes(tensor))
    except (ValueError, RecursionError) as broken:
        raise CheckpointError(f"`{tensor.name}` is damaged: {broken}", hint=AGAIN) from broken
    if not isinstance(state, dict):
        raise CheckpointError(f"`{tensor.name}` holds no object", hint=AGAIN)
    return state


def small_bytes(tensor: Tensor) -> bytes:
    """The bytes of a small tensor (n,), read without torch if it lies in a file.

    Raises CheckpointError for one of more than STATE_MAX bytes.
    """
    if tensor.nbytes > STATE_MAX:
        raise CheckpointError(f"`{tensor.name}` has {tensor.nbytes} bytes", hint=AGAIN)
    if not isinstance(tensor, StoredTensor):
        return bytes(tensor.read().reshape(-1).tolist())
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        return file.read(tensor.nbytes)


def is_shape(shape: list[object]) -> bool:
    return bool(shape) and all(type(length) is int and length > 0 for length in shape)
