"""Provenance metadata of a result: names, hashes and versions, no paths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.core.paths import repo_at
from exporter.core.version import own_version, version
from exporter.inputs.base_sample import COMMIT, NAME, SAMPLE, weights_sample

if TYPE_CHECKING:
    from exporter.llamacpp.toolchain import Toolchain
    from exporter.merge.operations import MergePlan


def provenance(merge: MergePlan, toolchain: Toolchain | None = None) -> dict[str, str | int]:
    """The keys that `decant inspect` reads: base, adapters and versions of the tools."""
    repo, commit = repo_at(merge.checkpoint.folder)
    metadata: dict[str, str | int] = {
        "decant.version": own_version(),
        "decant.llama_cpp": str(toolchain.info.get("commit", "")) if toolchain else "",
        "decant.transformers": version("transformers"),
        "decant.peft": version("peft") if merge.adapters else "",
        NAME: merge.checkpoint.name,
        "decant.base.repo": repo,
        COMMIT: commit,
        SAMPLE: "" if commit else weights_sample(merge.checkpoint.folder),
        "decant.merge_dtype": merge.dtype,
        "decant.base_roundtrip": merge.checkpoint.fake_quantized_as,
    }
    for number, weighted in enumerate(merge.adapters):
        adapter, key = weighted.adapter, f"decant.adapter{number or ''}"
        repo, commit = repo_at(adapter.folder)
        metadata |= {
            key: adapter.name,
            f"{key}.checkpoint": adapter.checkpoint,
            f"{key}.repo": repo,
            f"{key}.commit": commit,
            f"{key}.sha256": adapter.sha256(),
            f"{key}.scale": f"{weighted.scale:g}",
            f"{key}.trained_on": base_name(adapter.base),
        }
    return {key: value for key, value in metadata.items() if value}


def base_name(named: str | None) -> str:
    """A hub name unchanged, or the last part of a path, without the machine's folders."""
    if not named:
        return ""
    is_path = named.startswith((".", "/", "~")) or named.count("/") > 1
    return Path(named).name if is_path else named
