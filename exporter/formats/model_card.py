"""Writes a short README.md for a merged model: its inputs, and its licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.merge.operations import MergePlan
from exporter.merge.provenance import base_name, provenance

CARD = "README.md"
CARRIED = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""Entries of the base's card that also hold for the result."""


def model_card(plan: MergePlan, name: str) -> str:
    """The card of the plan's model, with the metadata that the hub reads."""
    from huggingface_hub import ModelCardData

    base = known_base(plan)
    facts = {key: str(value) for key, value in provenance(plan).items()}
    front_matter = base_card(plan.checkpoint.folder)
    # Any: ModelCardData takes the card's keys as keywords of many types
    carried: dict[str, Any] = {
        key: front_matter[key] for key in CARRIED if isinstance(front_matter.get(key), str)
    }
    data = ModelCardData(
        base_model=base, library_name="transformers", tags=["lora", "merged"], **carried
    )
    adapters = [weighted.adapter.name for weighted in plan.adapters]
    named = " and ".join(f"`{adapter}`" for adapter in adapters)
    made = f"{named} merged into `{base}`" if adapters else f"A copy of `{base}`"
    licence = carried.get("license_name") or carried.get("license")
    lines = [
        "---", data.to_yaml(), "---", f"# {name}", "", f"{made} by decant.", "",
        f"Licence: {licence}, as the base." if licence else
        "The base's folder names no licence; the base's terms hold for this model, too.", "",
        *(f"- `{key}`: {value}" for key, value in facts.items()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def known_base(plan: MergePlan) -> str:
    """The base's hub name if an adapter has it, else its name."""
    named = [base_name(weighted.adapter.base) for weighted in plan.adapters]
    return next((name for name in named if name.count("/") == 1), plan.checkpoint.name)


def base_card(folder: Path) -> dict[str, object]:
    """The metadata of the base's card; {} without a readable one."""
    from huggingface_hub import metadata_load

    card = folder / CARD
    try:
        return (metadata_load(card) or {}) if card.is_file() else {}
    except (OSError, ValueError):  # a foreign text, which nothing depends on
        return {}
