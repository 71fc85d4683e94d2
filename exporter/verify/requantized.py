"""Verifies a GGUF that was made from another GGUF.

Rows of each tensor are compared with the source's values and the adapters', settings and tokens
with the source's.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.core.errors import EngineError, ModelError, SpaceError
from exporter.core.ggml_types import FLOATS
from exporter.core.gguf import Array, GGUFFile, TensorInfo, read_gguf
from exporter.gguf_inputs.gguf_base import ARCHITECTURE, NOT_COPIED
from exporter.llamacpp.converter_import import imported
from exporter.merge.operations import MergePlan
from exporter.verify.bounds import allowed_error, least_likeness, likeness, shares_of
from exporter.verify.loading import check_loading, not_loaded, shortage, unloadable
from exporter.verify.logits_engine import LogitsEngine
from exporter.verify.rows import Reference
from exporter.verify.verification import Check, Verification

if TYPE_CHECKING:
    import numpy as np

    from exporter.llamacpp.toolchain import Toolchain

ROWS = 16  # of each tensor, by default
SEED = 20  # of the choice of rows
KEPT_ITEMS = 1 << 20  # items of an array, enough for every vocabulary
MERGE_DTYPE, MERGED_EXACTLY = "decant.merge_dtype", "float32"
IMATRIX = "quantize.imatrix."
NAMED_ANEW = ("general.name", "general.quantization_version")


def is_of_gguf(plan: MergePlan) -> bool:
    """Whether a plan's base is a GGUF file."""
    return ARCHITECTURE in plan.checkpoint.config


def verify_requantized(
    path: Path, plan: MergePlan, toolchain: Toolchain, *, rows: int = ROWS
) -> Verification:
    """Check one file's weights and settings; rows: how many of each tensor, 0 for all.

    Logits are not compared: transformers has no model of a GGUF. Raises ModelError for a file that
    is not a GGUF.
    """
    started = time.monotonic()
    file, source = (read_gguf(one, keep_items=KEPT_ITEMS) for one in (path, plan.checkpoint.folder))
    with imported(toolchain):
        checks = (
            check_weights(file, plan, rows),
            check_copied(file, source),
            loaded(file, toolchain),
        )
    return Verification(path, checks, time.monotonic() - started)


def loaded(file: GGUFFile, toolchain: Toolchain) -> Check:
    """Load the file in llama.cpp and compute a few tokens, in a child process."""
    if too_large := shortage(file):
        return not_loaded(too_large)
    with LogitsEngine(toolchain) as engine:
        try:
            engine.load(file.path)
            return check_loading(engine, file)
        except (EngineError, ModelError) as error:
            return unloadable(error)
        except SpaceError as error:
            return not_loaded(error.message)


def check_weights(file: GGUFFile, plan: MergePlan, rows: int) -> Check:
    """Compare some rows of every tensor with the base's and adapters' values."""
    import numpy as np

    from exporter.verify.weights import read_rows

    reference, problems = Reference(plan), []
    infos = {info.name: info for info in file.tensors}
    rounded = file.text(MERGE_DTYPE) != MERGED_EXACTLY
    weighed = any(key.startswith(IMATRIX) for key in file.metadata)
    random = np.random.default_rng(SEED)
    error = size = 0.0
    for name in plan.names:
        info = infos.get(name)
        if info is None:
            problems.append(f"`{name}` is missing")
            continue
        count = math.prod(info.shape[:-1]) if info.shape else 1
        numbers = np.sort(random.permutation(count)[: rows or None])
        merged = reference.rows(name, numbers)
        stored = read_rows(info, numbers)
        allowed = (
            allowed_error(merged.after, info.type, rounded=rounded, by_importance=weighed)
            + merged.slack
        )
        shares = shares_of(np.abs(stored - merged.after), allowed, by_importance=weighed)
        problems += problem_of(info, stored, merged.after, allowed, shares)
        if info.type.name not in FLOATS:
            error += float(((stored - merged.after) ** 2).sum())
            size += float((merged.after**2).sum())
    share = math.sqrt(error / size) if size else 0.0
    merged_count = sum(bool(change.steps) for change in plan.changes.values())
    return Check(
        "weights",
        tuple(problems),
        f"{merged_count} merged and {len(plan.names) - merged_count} other tensors;"
        f" quantizing lost {share:.2%} of the base file's values",
        numbers={"merged": merged_count, "loss": share},
    )


def problem_of(
    info: TensorInfo,
    stored: np.ndarray[Any, Any],
    expected: np.ndarray[Any, Any],
    allowed: np.ndarray[Any, Any],
    shares: np.ndarray[Any, Any],
) -> list[str]:
    """Describe the error in a tensor's rows (n, columns); empty if no share exceeds 1."""
    import numpy as np

    if not np.isfinite(stored).all():
        return [f"`{info.name}` ({info.type.name}) holds values that are not finite"]
    if (near := likeness(stored, expected)) < least_likeness(info.type):
        return [f"`{info.name}` is like another tensor (cosine {near:.2f})"]
    over = shares > 1
    if not over.any():
        return []
    at = tuple(int(index[0]) for index in over.nonzero())
    problem = f"`{info.name}` ({info.type.name}) is {stored[at]:.6g} where base and adapter give"
    return [f"{problem} {expected[at]:.6g}; the type allows an error of {allowed[at]:.2g}"]


def check_copied(file: GGUFFile, source: GGUFFile) -> Check:
    """Check that the file has every setting of the source, the tokenizer's included."""
    copied = {
        key: value
        for key, value in source.metadata.items()
        if not NOT_COPIED.match(key) and key not in NAMED_ANEW
    }
    problems = [
        f"{key} is {short(file.metadata.get(key))} and should be {short(value)}"
        for key, value in copied.items()
        if file.metadata.get(key) != value
    ]
    if file.architecture != source.architecture:
        problems.insert(0, f"it is a {file.architecture}, and its base a {source.architecture}")
    return Check("settings", tuple(problems), f"{len(copied)} settings as in the base's file")


def short(value: object) -> str:
    text = f"{value.length} items" if isinstance(value, Array) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"  # noqa: PLR2004 - what fits into a line
