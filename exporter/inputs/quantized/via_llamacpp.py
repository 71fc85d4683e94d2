"""Bases published quantized (fp8, GPTQ, compressed-tensors), dequantized by llama.cpp.

An adapter can be added only to a plain weight. The dequantization is that of llama.cpp's converter,
applied to one tensor at a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.core.paths import repo_at
from exporter.inputs.checkpoint import Checkpoint
from exporter.inputs.lazy_tensor import Tensor, dtype_name, nbytes_of, read_tensor, torch_dtype
from exporter.llamacpp.converter_import import imported

if TYPE_CHECKING:
    import torch

    from exporter.llamacpp.toolchain import Toolchain

# exceptions of the converter for settings and weights that do not fit together
DAMAGE = (
    KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError, ZeroDivisionError,
)  # fmt: skip


RELEASE_SUFFIX = re.compile(
    r"[-_.](unsloth-bnb-4bit|bnb-[48]bit|awq|gptq|hqq|aqlm|torchao|auto-?round|quip|eetq|exl[23]"
    r"|int[48]|w[48]a16|[2348]-?bits?|mlx|fp8|nvfp4|mxfp4)([-_.].*)?$",
    re.IGNORECASE,
)
"""The end of a quantized release's name: Qwen2.5-7B-Instruct-GPTQ-Int4."""


@dataclass(frozen=True, slots=True)
class Dequantized:
    """A weight that llama.cpp's converter computes from several stored tensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Any]  # makes a LazyTorchTensor of the build, untyped

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.dtype, self.shape)

    def read(self) -> torch.Tensor:
        import torch

        lazy = self.make()  # a new one each time: it caches its result
        with torch.inference_mode(mode=False), torch.no_grad():
            values: torch.Tensor = type(lazy).to_eager(lazy)
        return values.contiguous()


def dequantized_by_llamacpp(checkpoint: Checkpoint, toolchain: Toolchain) -> Checkpoint:
    """Replace quantized weights by plain float32 ones; reads no weight.

    Raises UnsupportedError for a kind that llama.cpp's converter does not dequantize,
    CheckpointError for parts that are missing or do not fit together.
    """
    settings = checkpoint.config.get("quantization_config")
    if not settings:
        return checkpoint
    with imported(toolchain):
        from conversion.base import ModelBase

        lazies = {name: partial(lazy, tensor) for name, tensor in checkpoint.tensors.items()}
        model = SimpleNamespace(
            hparams={"quantization_config": settings}, model_tensors=dict(lazies), lazy=True,
            _is_nvfp4=False, _fp8_as_q8=False, _fp8_dequantized=set(),
        )  # fmt: skip
        try:
            ModelBase.dequant_model(model)
            tensors = {
                name: checkpoint.tensors[name] if make is lazies.get(name) else describe(name, make)
                for name, make in model.model_tensors.items()
            }
        except (NotImplementedError, AssertionError) as error:
            raise UnsupportedError(
                f"`{checkpoint.folder}` is quantized in a way that llama.cpp's converter does not"
                f" dequantize ({method(settings)}): {error or 'unknown settings'}",
                hint=plain_release(checkpoint),
            ) from error
        except DAMAGE as error:
            raise CheckpointError(
                f"the quantized weights of `{checkpoint.folder}` ({method(settings)}) do not fit"
                f" each other: {type(error).__name__}: {error}",
                hint="download or copy the folder again",
            ) from error
    if tensors == checkpoint.tensors:
        raise UnsupportedError(
            f"`{checkpoint.folder}` is quantized ({method(settings)}), but none of its weights"
            " is recognized as quantized",
            hint=plain_release(checkpoint),
        )
    return checkpoint.with_plain(tensors)


def plain_release(checkpoint: Checkpoint) -> str:
    """A hint to use the 16-bit release, derived from the name of the quantized one."""
    repo, _ = repo_at(checkpoint.folder)
    name = repo or checkpoint.name
    plain = RELEASE_SUFFIX.sub("", name)
    if plain == name:
        return "use the 16-bit release of this base"
    named = plain if repo else f"ORG/{plain}"
    return f"use the 16-bit release of this base: `--base {named}`, as its name has it"


def method(settings: object) -> object:
    return settings.get("quant_method") if isinstance(settings, dict) else settings


def lazy(tensor: Tensor) -> Any:
    """llama.cpp's deferred tensor for `tensor`, of the same shape, (rows, columns) or any other."""
    from conversion.base import LazyTorchTensor

    meta = LazyTorchTensor.meta_with_dtype_and_shape(torch_dtype(tensor.dtype), tensor.shape)
    return LazyTorchTensor(meta=meta, args=(tensor,), func=read_tensor)


def describe(name: str, make: Callable[[], Any]) -> Dequantized:
    made = make()
    dtype, shape = dtype_name(made.dtype), tuple(int(length) for length in made.shape)
    if dtype is None or not math.prod(shape):
        raise ValueError(f"`{name}` becomes {made.dtype} {list(shape)}")
    return Dequantized(name, dtype, shape, make)
