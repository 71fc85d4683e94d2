"""Fingerprint of everything a merge depends on, deciding whether a partial export can resume."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from exporter.core.gguf import read_gguf
from exporter.core.version import version
from exporter.merge.operations import CombinedSum, MergePlan
from exporter.merge.result_files import WEIGHTS

if TYPE_CHECKING:
    from exporter.llamacpp.toolchain import Toolchain

PACKAGES = ("decant-llm", "torch", "transformers", "peft")


def identity(merge: MergePlan, toolchain: Toolchain | None = None) -> dict[str, str]:
    """Facts that are equal for two identical merges, under names for people.

    A file of the base counts as unchanged while its size and time stay equal; adapters are hashed.
    """
    base = merge.checkpoint.folder
    found = (path for pattern in (*WEIGHTS, "config.json") for path in base.glob(pattern))
    files = sorted(found if base.is_dir() else read_gguf(base).shards or [base])
    stats = [(path.name, path.stat()) for path in files]
    combined = {
        str(step.how)
        for change in merge.changes.values()
        for step in change.steps
        if isinstance(step, CombinedSum)
    }
    facts = {
        "base": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        "adapters": [(each.adapter.sha256(), each.scale) for each in merge.adapters],
        "merging": [merge.dtype, sorted(combined), merge.checkpoint.fake_quantized_as],
        "versions": [version(package) for package in PACKAGES],
    }
    if toolchain:
        facts["llama.cpp"] = [str(toolchain.info.get("key", ""))]
    return {name: json.dumps(fact) for name, fact in facts.items()}
