"""Suggests the base of an adapter whose config names a path on the training machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from exporter.core.errors import DecantError
from exporter.core.paths import last_part
from exporter.inputs.adapter_spec import AdapterSpec
from exporter.inputs.module_names import Names
from exporter.inputs.open_checkpoint import open_checkpoint

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
BASE_MODEL = re.compile(r"^base_model:(?P<inline>.*)$(?P<items>(\n[ \t]*-[ \t].*)*)", re.MULTILINE)
CACHED = "models--"
DOT = "___"
"""The text that ModelScope's cache writes for a dot in a repo's name: Qwen/Qwen2___5-7B."""
NO_ORGS = {
    "base", "bases", "cache", "checkpoints", "ckpt", "data", "downloads", "hf", "home", "hub",
    "llm", "llms", "mnt", "model", "models", "output", "outputs", "pretrained", "root", "snapshots",
    "tmp", "weights", "work", "workspace",
}  # fmt: skip
"""Parent folders of models that are not names of organizations on the hub."""
LONGEST = 1 << 18  # characters read of a card; its front matter comes first
FEW = 3  # candidates in a hint
PROBED = 4  # modules of the adapter that are looked up in a base


def base_of_card(folder: Path) -> str | None:
    """The base that the adapter's model card (README.md) names as ORG/NAME, or None.

    PEFT writes the path on the training machine into the card, too; such a path is ignored.
    """
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    front = FRONT_MATTER.match(text[:LONGEST])
    found = BASE_MODEL.search(front[1]) if front else None
    if found is None:
        return None
    inline = found["inline"].partition(" #")[0].strip("[] \t")
    named = (
        inline.split(",")
        if inline
        else [line.strip(" \t-") for line in found["items"].split("\n")[1:]]
    )
    names = [name.partition(" #")[0].strip(" \t'\"") for name in named]
    return names[0] if len(names) == 1 and REPO.fullmatch(names[0]) else None


def hint_for_absent(adapter: AdapterSpec, cache: Path) -> str:
    """A hint with values of --base for a missing base.

    cache: the hub cache, where models of the same name or shapes may lie.
    """
    candidates = list(dict.fromkeys(candidates_for(adapter, cache)))[:FEW]
    if candidates:
        return " or ".join(f"pass `--base {name}`" for name in candidates) + (
            ", if that is the model it was trained on"
        )
    name = last_part(adapter.base or "").replace(DOT, ".")
    return (
        f"pass its folder as --base FOLDER, or its name on the hub, such as --base ORG/{name}"
        if re.fullmatch(r"[\w.-]*[A-Za-z][\w.-]*", name)
        else "pass its folder as --base FOLDER, or its name on the hub as --base ORG/NAME"
    )


def candidates_for(adapter: AdapterSpec, cache: Path) -> Iterator[str]:
    """Bases that an adapter may mean, the likeliest first: local paths or ORG/NAME."""
    named = (adapter.base or "").replace("\\", "/").rstrip("/").replace(DOT, ".")
    for part in named.split("/"):
        if part.startswith(CACHED):  # a path into the hub cache of the training machine
            yield part.removeprefix(CACHED).replace("--", "/", 1)
    name = last_part(named)
    for place in (adapter.folder.resolve().parent, Path.cwd()):
        if name and (place / name / "config.json").exists():
            yield str(place / name)
    cached = sorted(cache.glob(f"{CACHED}*--*/snapshots/*/config.json"))
    repos = {path.parent: path.parts[-4].removeprefix(CACHED).replace("--", "/", 1)
             for path in cached}  # fmt: skip
    for repo in repos.values():
        if name and last_part(repo).lower() == name.lower():
            yield repo
    for folder, repo in repos.items():
        if fits(adapter, folder):
            yield repo
    last_two = "/".join(named.split("/")[-2:])
    is_org = last_two.partition("/")[0].lower() not in NO_ORGS
    if REPO.fullmatch(last_two) and named.count("/") > 1 and ":" not in last_two and is_org:
        yield last_two


def fits(adapter: AdapterSpec, folder: Path) -> bool:
    """Whether a model has the first modules of a LoRA with matching shapes."""
    try:
        checkpoint = open_checkpoint(folder)
        names = Names(checkpoint)
        shapes = [
            ((pair.b.shape[0], pair.a.shape[1]), pair.module) for pair in adapter.pairs[-PROBED:]
        ]
        found = [names.plain_tensor(f"{module}.weight") for _, module in shapes]
    except DecantError:
        return False
    return bool(shapes) and all(
        name is not None and checkpoint.tensors[name].shape == shape
        for name, (shape, _) in zip(found, shapes, strict=True)
    )
