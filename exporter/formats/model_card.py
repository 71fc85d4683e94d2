"""Writes the README.md of a model: the hub's front matter, its inputs, and its licence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from exporter.merge.operations import MergePlan
from exporter.merge.provenance import base_name, provenance

CARD = "README.md"
CARRIED = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""Entries of the base's card that also hold for the result."""
Relation: TypeAlias = Literal["quantized", "adapter", "merge", "finetune"]
"""How the hub says that a model is made from its base."""


def model_card(plan: MergePlan, name: str) -> str:
    """The card of the plan's model, with the metadata that the hub reads."""
    base = known_base(plan)
    facts = {key: str(value) for key, value in provenance(plan).items()}
    found = base_card(plan.checkpoint.folder)
    carried = {key: value for key in CARRIED if isinstance(value := found.get(key), str)}
    adapters = [weighted.adapter.name for weighted in plan.adapters]
    relation: Relation = "merge" if len(adapters) > 1 else "finetune"
    named = " and ".join(f"`{adapter}`" for adapter in adapters)
    made = f"{named} merged into `{base}`" if adapters else f"A copy of `{base}`"
    lines = [
        *front_matter(
            "transformers", ["lora", "merged"], carried, base=base,
            relation=relation if adapters else None,
        ),
        f"# {name}", "", f"{made} by decant.", "", licence_sentence(carried), "",
        *(f"- `{key}`: {value}" for key, value in facts.items()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def front_matter(
    library: str,
    tags: Sequence[str],
    carried: Mapping[str, str | list[str]],
    *,
    base: str | None,
    relation: Relation | None,
    more: Mapping[str, str] | None = None,
) -> list[str]:
    """The lines that the hub reads. carried: entries of the base's card that hold here, too."""
    from huggingface_hub import ModelCardData

    # Any: ModelCardData takes the card's keys as keywords of many types
    entries: dict[str, Any] = dict(carried) | dict(more or {})
    if base and relation:
        entries["base_model_relation"] = relation
    data = ModelCardData(base_model=base, library_name=library, tags=list(tags), **entries)
    return ["---", data.to_yaml(), "---"]


def licence_sentence(carried: Mapping[str, str | list[str]]) -> str:
    """A sentence on the licence, which is the base's."""
    licence = carried.get("license_name") or carried.get("license")
    if licence:
        return f"Licence: {licence}, as the base."
    return "The base's folder names no licence; the base's terms hold for this model, too."


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
