"""Output scales of weights, which llama.cpp applies before it adds an adapter's output.

Its graphs compute (W @ x) * s + B @ A @ x if the model has a tensor `NAME.scale` beside
`NAME.weight` (build_lora_mm and build_lora_mm_id of llama-graph.cpp); in training the factor
applies to the sum. So s is multiplied into B.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from exporter.convert.low_rank import Product
    from exporter.inputs.checkpoint import Checkpoint

SUFFIX, WEIGHT = ".scale", ".weight"
SCALED = "decant.lora.scaled"
"""GGUF adapter key: names of the weights whose scale B already contains."""
STACK = 3  # dimensions


def output_scales(
    model: Any, checkpoint: Checkpoint, ignored: tuple[type[Exception], ...]
) -> dict[str, torch.Tensor]:
    """The model's scales, (1,) or (experts,), by the GGUF name of their weight.

    ignored: exceptions of the class for tensors that it does not accept one by one.
    """
    import torch

    from exporter.inputs.lazy_tensor import read_tensor

    found = {}
    for name, tensor in checkpoint.tensors.items():
        if len(tensor.shape) > 1:
            continue
        try:
            made = renamed(model, name, torch.ones(tensor.shape))
        except ignored:
            continue
        if any(gguf_name.endswith(SUFFIX) for gguf_name, _ in made):
            for gguf_name, values in renamed(model, name, read_tensor(tensor).float()):
                found[gguf_name.removesuffix(SUFFIX) + WEIGHT] = values
    return found


def renamed(model: Any, name: str, values: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The class's outputs for a small tensor (n,), by GGUF name."""
    kept = model.filter_tensors((name, lambda: None))
    if kept is None:
        return []
    number = next((int(part) for part in kept[0].split(".") if part.isdecimal()), None)
    return list(model.modify_tensors(values, kept[0], number))


def is_on_output(weight: tuple[int, ...], scale: tuple[int, ...]) -> bool:
    """Whether a scale applies to a weight's output: a single one, or one per expert.

    Others apply to its input, such as that of Gemma 4's router.
    """
    count = math.prod(scale)
    return count == 1 or (len(weight) == STACK and count == weight[0])


def scaled(product: Product, scale: torch.Tensor | None) -> Product:
    """The product (…, n_out, n_in) times its output scale (1,) or (experts,), if there is one."""
    if scale is None or not is_on_output(product.shape, tuple(scale.shape)):
        return product
    return product * scale.reshape(-1, *(1 for _ in product.shape[1:]))
