"""Plans a merge: resolves adapters onto a checkpoint before any value is read.

Every tensor of every adapter is used exactly once or refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence

from exporter.core.errors import UnsupportedError
from exporter.inputs.checkpoint import Checkpoint
from exporter.merge.merge_planner import Planner
from exporter.merge.operations import (
    Change,
    Combination,
    MergeDtype,
    MergePlan,
    WeightedAdapter,
)
from exporter.merge.settle_embeddings import settle_embeddings


def plan_merge(
    checkpoint: Checkpoint,
    adapters: Sequence[WeightedAdapter] = (),
    *,
    dtype: MergeDtype = "float32",
    combine: Combination | None = None,
) -> MergePlan:
    """Resolve every tensor of every adapter onto the checkpoint.

    Raises AdapterError, naming the first few, for a target that is missing or has another shape,
    UnsupportedError for a combination that no merge can express.
    """
    if adapters:
        refuse_quantized(checkpoint)
    planner = Planner(checkpoint)
    planner.look_at_base()
    for weighted in adapters:
        planner.add(weighted)
    if combine:
        planner.combine(combine)
    planner.become_classifier([weighted.adapter for weighted in adapters])
    settled = settle_embeddings(planner, [weighted.adapter for weighted in adapters])
    changes = {
        name: Change(planner.source(name), steps, settled.shape(name, planner))
        for name, steps in settled.steps.items()
    }
    return MergePlan(
        checkpoint,
        tuple(adapters),
        dtype,
        changes,
        settled.dropped,
        dict(settled.config),
        settled.notes,
    )


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedError for a base whose weights are quantized."""
    quantized = checkpoint.config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise UnsupportedError(
            f"`{checkpoint.folder}` is quantized ({method}): an adapter cannot be merged into it",
            hint="pass the 16-bit release of the same model as --base",
        )
