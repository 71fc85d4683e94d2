"""Compares a projector's output for a picture in llama.cpp with transformers' vision tower."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.core.errors import EngineError, ModelError, UnsupportedError
from exporter.core.events import Report, Step, silent
from exporter.core.gguf import Array, GGUFFile, read_gguf
from exporter.verify.logits_engine import LogitsEngine
from exporter.verify.projector import (
    HINT,
    encoded,
    merged_of,
    patch_of,
    picture,
    projector_type,
    side,
)
from exporter.verify.unmerged import unmerged
from exporter.verify.verification import Check

if TYPE_CHECKING:
    import numpy as np
    import torch

    from exporter.llamacpp.toolchain import Toolchain
    from exporter.merge.operations import MergePlan

    Floats = np.ndarray[Any, Any]

NAME = "pictures"
OF_ONE_SIZE = ("gemma3", "mlp")  # clip.projector_type
FRAMES = 2  # a picture becomes two equal frames of a film
PATCHED = ("glm4v", "qwen2.5vl_merger", "qwen2vl_merger", "qwen3vl_merger")
PIXTRAL = "pixtral"
OTHER_TOWER = (
    "llama.cpp computes pictures differently from this model: `--to safetensors` writes it for"
    " transformers"
)
NEARLY_ALL = 0.9  # share of the tokens
LIMITS = {"F32": 0.02, "F16": 0.03, "BF16": 0.06}
"""Largest deviation of nearly all of a picture's embeddings relative to their length, by the
weights' type: ggml rounds the activations to that type, too, and convolves in float16.
"""


def verify_pictures(
    path: Path, model: Path, plan: MergePlan, toolchain: Toolchain, *, report: Report = silent
) -> Check:
    """Compare the embeddings of one picture.

    path: the projector's. Raises the errors of `unmerged`, and UnsupportedError for a projector
    whose input format is unknown.
    """
    started = time.monotonic()
    file = read_gguf(path)
    pixels = picture(side(file))
    report(Step("showing a picture to transformers and to llama.cpp"))
    with unmerged(plan, report=report) as trained:
        given = inputs(file, pixels)
        if plan.adapters:
            trained.adapt()
        theirs = tokens_of(trained.image_features(given))
    try:
        with LogitsEngine(toolchain) as engine:
            _, ours = encoded(engine, file, read_gguf(model), pixels)
    except (EngineError, ModelError) as error:
        return Check(NAME, (error.message,), "llama.cpp cannot run it", hint=HINT)
    if projector_type(file) == PIXTRAL:
        ours = without_breaks(ours, len(pixels) // (patch_of(file) * merged_of(file)))
    check = judge(ours, theirs, {info.type.name for info in file.tensors})
    return replace(check, numbers=check.numbers | {"seconds": time.monotonic() - started})


def inputs(file: GGUFFile, pixels: Floats) -> dict[str, torch.Tensor]:
    """A picture (side, side, 3) in the form of transformers' processor for this model.

    Raises UnsupportedError for a model with another processor.
    """
    import torch

    kind, count = projector_type(file), len(pixels)
    mean, spread = (
        torch.tensor(numbers(file, f"clip.vision.image_{name}")) for name in ("mean", "std")
    )
    values = ((torch.from_numpy(pixels.copy()) / 255 - mean) / spread).permute(2, 0, 1)  # (3, h, w)
    if kind in OF_ONE_SIZE and count == file.number("clip.vision.image_size"):
        return {"pixel_values": values[None]}
    if kind == PIXTRAL:
        return {"pixel_values": values[None], "image_sizes": torch.tensor([[count, count]])}
    if kind in PATCHED:
        grid = count // patch_of(file)
        return {
            "pixel_values": patches(values, patch_of(file), merged_of(file)),
            "image_grid_thw": torch.tensor([[1, grid, grid]]),
        }
    raise UnsupportedError(
        f"pictures of projectors of the type {kind!r} are not compared with transformers",
        hint="their weights and settings are, and llama.cpp has encoded one",
    )


def patches(values: torch.Tensor, patch: int, merged: int) -> torch.Tensor:
    """Cut a picture (3, h, w) into patches (count, 3 * FRAMES * patch * patch).

    Patches that form one token follow each other.
    """
    import torch

    rows, columns = (size // (patch * merged) for size in values.shape[1:])
    film = torch.stack([values] * FRAMES)  # (frame, colour, h, w)
    cut = film.reshape(FRAMES, 3, rows, merged, patch, columns, merged, patch)
    ordered = cut.permute(2, 5, 3, 6, 1, 0, 4, 7)  # (row, column, y, x, colour, frame, h, w)
    return ordered.reshape(rows * columns * merged * merged, -1)


def numbers(file: GGUFFile, key: str) -> tuple[float, ...]:
    value = file.metadata.get(key)
    assert isinstance(value, Array), key  # the settings are checked before
    return tuple(float(item) for item in value.items if isinstance(item, int | float))


def tokens_of(found: Any) -> Floats:
    """transformers' output as (tokens, width), with the features for deeper layers appended."""
    import torch

    def joined(values: Any) -> torch.Tensor:
        parts = values if isinstance(values, (list, tuple)) else [values]
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])

    main = getattr(found, "pooler_output", None)
    deeper = getattr(found, "deepstack_features", None) or ()
    columns = [joined(found if main is None else main), *map(joined, deeper)]
    made: Floats = torch.cat(columns, dim=1).float().numpy()
    return made


def without_breaks(embeddings: Floats, columns: int) -> Floats:
    """Pixtral's embeddings (tokens, width) without [IMG_BREAK], which llama.cpp puts after each
    row.

    transformers takes that embedding from the language model.
    """
    import numpy as np

    at = np.arange(len(embeddings))
    kept: Floats = embeddings[at % (columns + 1) != columns]
    return kept


def judge(ours: Floats, theirs: Floats, types: Collection[str]) -> Check:
    """Compare llama.cpp's embeddings (tokens, width) with transformers'. types: the weights'
    types.
    """
    import numpy as np

    if ours.shape != theirs.shape:
        unlike = f"llama.cpp makes {ours.shape} numbers of a picture, transformers {theirs.shape}"
        return Check(NAME, (unlike,), unlike, hint=OTHER_TOWER)
    sizes = np.linalg.norm(theirs, axis=1)
    sizes = np.where(sizes > 0, sizes, 1.0)  # an untrained projector may output zeros
    off = float(np.quantile(np.linalg.norm(ours - theirs, axis=1) / sizes, NEARLY_ALL))
    limit = max((LIMITS.get(name, math.inf) for name in types), default=math.inf)
    detail = f"{len(ours)} embeddings of a picture, {off:.2g} off transformers' (limit {limit:.2g})"
    found = {"embeddings": len(ours), "embeddings_off": off}
    if limit == math.inf:
        notes = (
            f"the loss by quantizing a projector is unknown: its embeddings are {off:.1%} off",
        )
        return Check(NAME, (), detail, notes, found, judged=False)
    wrong = () if off <= limit else (f"a picture's embeddings are {off:.1%} off transformers'",)
    return Check(NAME, wrong, detail, numbers=found, hint=OTHER_TOWER)
