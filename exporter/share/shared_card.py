"""Describes the files of a push for the card of their repo."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from exporter.core.events import Report, Warn
from exporter.core.gguf import SHARD, SUFFIX, Array, GGUFFile
from exporter.formats.gguf_card import (
    CardFile,
    CardPlace,
    evaluation_in,
    files_in,
    gguf_card,
    is_ours,
)
from exporter.hub.endpoints import Endpoint
from exporter.hub.upload.remote_repo import CARD, RemoteRepo
from exporter.model_store import QUANT_AT_END, plain_name
from exporter.share.shared_files import SharedModel

HUB_HOST = "hf.co"
ADAPTER_KEY = re.compile(r"decant\.adapter\d*")
REPO = re.compile(r"[\w.-]+/[\w.-]+")
ADDRESSES = ("general.base_model.0.repo_url", "general.source.repo_url")
"""Keys in which converters name the base."""
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
LANGUAGE = re.compile(r"[a-z]{2,3}")
LANGUAGES = 64  # languages, above which a list is left out
ORDER = ("model", "adapter", "projector")
GENERAL = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
}
SHOWN = ("decant.", "quantize.imatrix.")
"""Beginnings of the keys that the card lists as provenance."""


@dataclass(slots=True)
class SharedCard:
    """Writes the card for models that are pushed, beside the GGUFs that the repo has already."""

    models: Sequence[SharedModel]
    repo: str
    endpoint: Endpoint
    overwrite: bool
    """Whether a README that decant did not write is replaced."""
    evaluation: Callable[[Mapping[str, str]], str]
    """The evaluation's section for files of these hashes; empty without one."""
    report: Report
    was_reported: bool = False

    def text(
        self, remote: RemoteRepo | None, hashes: Mapping[str, str], old: str | None
    ) -> str | None:
        """The card; None, with a warning, to keep a README that decant did not write."""
        if old is not None and not is_ours(old) and not self.overwrite:
            if not self.was_reported:
                self.report(
                    Warn(
                        f"the {CARD} of {self.repo} was not written by decant, or was changed"
                        " since: it is kept; `decant push … --overwrite-card` replaces it"
                    )
                )
            self.was_reported = True
            return None
        known = files_in(old) if old is not None and is_ours(old) else []
        files = [card_file(model, hashes) for model in self.models]
        files += other_files(remote, known, set(hashes))
        files.sort(key=lambda file: (ORDER.index(file.kind), file.nbytes, file.name))
        evaluation = self.evaluation(hashes) or (evaluation_in(old) if known and old else "")
        return gguf_card(files, card_place(self.repo, self.endpoint), evaluation)


def card_place(repo: str, endpoint: Endpoint) -> CardPlace:
    url = f"{endpoint.url}/{repo}"
    if endpoint.is_reference:
        return CardPlace(repo, HUB_HOST, url)
    return CardPlace(repo, endpoint.name, url, f"HF_ENDPOINT={endpoint.url} ")


def card_file(model: SharedModel, hashes: Mapping[str, str]) -> CardFile:
    """The facts of a GGUF that is pushed."""
    header, verified = model.header, model.verified
    return CardFile(
        model.path.name,
        hashes[model.path.name],
        sum(path.stat().st_size for path in model.files),
        model.kind,
        model.quant,
        len(model.files),
        [[c.name, c.verdict, "; ".join(c.problems) or c.detail] for c in verified.checks]
        if verified
        else [],
        provenance_of(header),
        base_of(header),
        title_of(header),
        carried_of(header),
    )


def other_files(
    remote: RemoteRepo | None, known: Sequence[CardFile], pushed: set[str]
) -> list[CardFile]:
    """The repo's other GGUFs; what its card says of them holds as long as their hashes do."""
    there = {
        name: file
        for name, file in (remote.files.items() if remote else ())
        if name.endswith(SUFFIX) and name not in pushed
    }
    by_name = {file.name: file for file in known}
    found = []
    for name, file in there.items():
        shard = SHARD.fullmatch(name)
        if shard and int(shard["number"]) != 1:
            continue
        if name in by_name and by_name[name].sha256 == file.sha256:
            found.append(by_name[name])
            continue
        stem = shard["stem"] if shard else name.removesuffix(SUFFIX)
        parts = [one for other, one in there.items() if is_part(other, shard)] if shard else [file]
        quant = QUANT_AT_END.search(stem)
        kind = "projector" if name.startswith("mmproj") else "model"
        fresh = CardFile(name, file.sha256, sum(p.size for p in parts), kind, "")
        found.append(replace(fresh, quant=quant[1].upper() if quant else "", files=len(parts)))
    return found


def is_part(name: str, first: re.Match[str]) -> bool:
    """Whether a file belongs to the split model of that first file."""
    found = SHARD.fullmatch(name)
    return found is not None and found.group("stem", "count") == first.group("stem", "count")


def provenance_of(header: GGUFFile) -> dict[str, str]:
    """decant's keys: names, hashes and versions, never a path."""
    found = {
        key: str(value)
        for key, value in header.metadata.items()
        if key.startswith(SHOWN) and isinstance(value, str | int | float)
    }
    return {key: value for key, value in found.items() if len(value) < 200}  # noqa: PLR2004


def base_of(header: GGUFFile) -> str:
    """The base's name on the hub; empty if the file does not say it."""
    trained_on = [
        value
        for key, value in header.metadata.items()
        if key.endswith(".trained_on") and ADAPTER_KEY.fullmatch(key.removesuffix(".trained_on"))
    ]
    address = next((found for key in ADDRESSES if (found := header.text(key))), "")
    names = [header.text("decant.base.repo"), *trained_on, "/".join(address.split("/")[-2:])]
    return next((name for name in names if isinstance(name, str) and REPO.fullmatch(name)), "")


def title_of(header: GGUFFile) -> str:
    """A description of the model in Markdown; empty for a file that decant did not make."""
    adapters = [str(value) for key, value in header.metadata.items() if ADAPTER_KEY.fullmatch(key)]
    base = base_of(header) or header.text("decant.base") or ""
    if not base:
        return ""
    if header.is_adapter:
        return f"The adapter {names_text(adapters)} for `{base}`"
    return f"{names_text(adapters)} merged into `{base}`" if adapters else f"`{base}`"


def names_text(names: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def carried_of(header: GGUFFile) -> dict[str, str | list[str]]:
    """The licence and the languages that the GGUF has from its base."""
    found: dict[str, str | list[str]] = {
        key: value for key, name in GENERAL.items() if (value := header.text(name))
    }
    licence = found.get("license")
    if isinstance(licence, str) and not LICENCE.fullmatch(licence):  # a name, and no id of the hub
        found |= {"license": "other", "license_name": plain_name(licence).lower()}
    listed = header.metadata.get("general.languages")
    items = listed.items if isinstance(listed, Array) and listed.length < LANGUAGES else ()
    if codes := [item for item in items if isinstance(item, str) and LANGUAGE.fullmatch(item)]:
        found["language"] = codes
    return found
