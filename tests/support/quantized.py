"""Checkpoints in the formats that others quantize to, made without their packages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.raw import edit_json, write_base

BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
       "bnb_4bit_use_double_quant": False}  # fmt: skip
GOOD = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [8, 8]}
"""bitsandbytes' description of an 8 by 8 matrix in NF4."""


def requantized(
    base: Path, folder: Path, settings: dict[str, Any], quantize: Callable[..., dict[str, Any]]
) -> Path:
    """A copy of `base`; each projection is replaced by the tensors of `quantize(name, weight)`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    tensors: dict[str, Any] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        is_projection = name.endswith("_proj.weight")
        made = quantize(name, weight) if is_projection else {name: weight}
        tensors |= {key: value.contiguous() for key, value in made.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", quantization_config=settings)
    return folder


def plain_copy(folder: Path, target: Path, settings: object = None) -> Path:
    """The same model with every tensor as `open_checkpoint` gives it, in plain safetensors."""
    from safetensors.torch import save_file

    from exporter.inputs.lazy_tensor import read_tensor
    from exporter.inputs.open_checkpoint import open_checkpoint

    tensors = {name: read_tensor(t) for name, t in open_checkpoint(folder).tensors.items()}
    shutil.copytree(folder, target)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    edit_json(target / "config.json", quantization_config=settings)
    return target


def nf4(name: str, weight: Any, block: int = 64) -> dict[str, Any]:
    """A weight as bitsandbytes keeps it; its values are only nearly those of bitsandbytes."""
    import torch

    from exporter.inputs.quantized.bitsandbytes import NF4

    table = torch.tensor(NF4)
    blocks = weight.float().reshape(-1, block)
    absmax = blocks.abs().amax(dim=1)
    codes = (blocks / absmax[:, None]).reshape(-1, 1).sub(table).abs().argmin(dim=1).byte()
    state = {"quant_type": "nf4", "blocksize": block, "shape": list(weight.shape),
             "dtype": str(weight.dtype).removeprefix("torch.")}  # fmt: skip
    return {
        name: (codes[::2] << 4 | codes[1::2])[:, None],
        f"{name}.absmax": absmax,
        f"{name}.quant_map": table.clone(),
        f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(state).encode())
        ).byte(),
    }


def raw_quantized(folder: Path, state: bytes) -> Path:
    """A checkpoint with one 8 by 8 weight in NF4 and any quantization state."""
    write_base(folder)
    parts = {
        "x.weight": ("U8", 32),
        "x.weight.absmax": ("F32", 4),
        "x.weight.quant_map": ("F32", 64),
    }
    parts["x.weight.quant_state.bitsandbytes__nf4"] = ("U8", len(state))
    entries: dict[str, Any] = {}
    end = 0
    for name, (dtype, nbytes) in parts.items():
        shape = [nbytes // (4 if dtype == "F32" else 1)]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    header = json.dumps(entries).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(end - len(state)) + state
    (folder / "model.safetensors").write_bytes(content)
    edit_json(folder / "config.json", quantization_config=BNB)
    return folder


def int8(name: str, weight: Any) -> dict[str, Any]:
    import torch

    absmax = weight.float().abs().amax(dim=1)
    codes = (weight.float() * (127 / absmax[:, None])).round().to(torch.int8)
    layout = torch.tensor(0, dtype=torch.uint8)
    scales = name.removesuffix("weight") + "SCB"
    return {name: codes, scales: absmax, f"{name}_format": layout}


def fp8_blocks(name: str, weight: Any, block: int = 128) -> dict[str, Any]:
    """A weight as DeepSeek and Qwen publish it: e4m3 with a scale for every square of 128."""
    import torch

    squares = weight.float().reshape(weight.shape[0] // block, block, -1, block)
    scale = squares.abs().amax(dim=(1, 3)) / 448
    codes = (squares / scale[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale_inv": scale}


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def fp8_channels(name: str, weight: Any) -> dict[str, Any]:
    """A weight as compressed-tensors' float-quantized: e4m3 with a scale for each row."""
    import torch

    scale = weight.float().abs().amax(dim=1, keepdim=True) / 448
    codes = (weight.float() / scale).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale": scale.to(weight.dtype)}


def compressed(form: str, **weights: object) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }


FLOAT_QUANTIZED = compressed("float-quantized", num_bits=8, type="float", strategy="channel")
PACK_QUANTIZED = compressed(
    "pack-quantized", num_bits=4, type="int", strategy="group", group_size=32, symmetric=True
)


def packed_groups(name: str, weight: Any, group: int = 32) -> dict[str, Any]:
    """A weight as compressed-tensors' pack-quantized: eight 4-bit values of a row in an int32."""
    import torch

    rows, width = weight.shape
    groups = weight.float().reshape(rows, -1, group)
    scale = groups.abs().amax(dim=2) / 7
    codes = (groups / scale[:, :, None]).round().clamp(-8, 7).to(torch.int64).reshape(
        rows, -1, 8
    ) + 8
    packed = (codes << torch.arange(0, 32, 4)).sum(dim=2)
    return {
        f"{name}_packed": to_int32(packed),
        f"{name}_scale": scale.to(weight.dtype),
        f"{name}_shape": torch.tensor([rows, width], dtype=torch.int64),
    }


def gptq(name: str, weight: Any, group: int = 32) -> dict[str, Any]:
    """A weight as GPTQ packs it: eight 4-bit values of a column in an int32, zero points - 1."""
    import torch

    columns = weight.float().T.reshape(-1, group, weight.shape[0])  # (group, in it, n_out)
    low = columns.amin(dim=1).clamp(max=0)
    scale = ((columns.amax(dim=1).clamp(min=0) - low) / 15).half().float()
    zeros = (-low / scale).round().clamp(1, 15).to(torch.int64)
    codes = ((columns / scale[:, None]).round() + zeros[:, None]).clamp(0, 15).to(torch.int64)
    codes = codes.reshape(-1, 8, weight.shape[0])
    shifts = torch.arange(0, 32, 4)
    stem = name.removesuffix(".weight")
    n_in = weight.shape[1]
    return {
        f"{stem}.qweight": to_int32((codes << shifts[:, None]).sum(dim=1)),
        f"{stem}.qzeros": to_int32(((zeros - 1).reshape(len(zeros), -1, 8) << shifts).sum(dim=2)),
        f"{stem}.scales": scale.half(),
        f"{stem}.g_idx": (torch.arange(n_in) // group).to(torch.int32),
    }


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False,
        "checkpoint_format": "gptq"}  # fmt: skip


def to_int32(values: Any) -> Any:
    """The low 32 bits of each value, as int32."""
    import torch

    return torch.where(values >= 2**31, values - 2**32, values).to(torch.int32)
