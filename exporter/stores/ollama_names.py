"""Names of Ollama's models, HOST/USER/MODEL:TAG; all but MODEL have a default.

The rules are those of types/model/name.go in https://github.com/ollama/ollama. No name that keeps
them leads out of the folder of the manifests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from exporter.core.errors import ModelError
from exporter.stores.other_model import SHOWN

HOST, USER, TAG = "registry.ollama.ai", "library", "latest"
WORD = r"[A-Za-z0-9_]"
HOSTS = re.compile(rf"{WORD}[\w.:-]{{0,349}}", re.ASCII)
USERS = re.compile(rf"{WORD}[\w-]{{0,79}}", re.ASCII)
PARTS = re.compile(rf"{WORD}[\w.-]{{0,79}}", re.ASCII)
"""Models and tags."""
LONGEST = 80  # characters of a model or a tag


@dataclass(frozen=True, slots=True)
class OllamaName:
    """The whole name of a model."""

    host: str
    user: str
    model: str
    tag: str

    @property
    def place(self) -> Path:
        """The path of its manifest, below the folder of the manifests."""
        return Path(self.host, self.user, self.model, self.tag)

    @property
    def folded(self) -> str:
        """The name by which Ollama compares: two that differ in case alone are one."""
        return self.place.as_posix().lower()

    def __str__(self) -> str:
        """The name as Ollama lists it, without the defaults before MODEL."""
        if self.host.lower() != HOST:
            return f"{self.host}/{self.user}/{self.model}:{self.tag}"
        before = "" if self.user.lower() == USER else f"{self.user}/"
        return f"{before}{self.model}:{self.tag}"


def parse_ollama_name(text: str) -> OllamaName:
    """The whole name that a text means. Raises ModelError for one that Ollama does not allow."""
    path, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        path, tag = text, TAG
    parts = path.split("/")
    if len(parts) <= 3:  # noqa: PLR2004 - host, user and model
        host, user, model = [*[HOST, USER][: 3 - len(parts)], *parts]
        name = OllamaName(host, user, model, tag)
        if is_allowed(name):
            return name
    raise ModelError(
        f"{text[:SHOWN]!r} is no name of a model of Ollama's",
        hint="it is MODEL:TAG, USER/MODEL:TAG or HOST/USER/MODEL:TAG, of letters, digits, `_`, `-`"
        " and `.`, such as llama3.2:1b",
    )


def is_allowed(name: OllamaName) -> bool:
    return bool(
        HOSTS.fullmatch(name.host)
        and USERS.fullmatch(name.user)
        and PARTS.fullmatch(name.model)
        and PARTS.fullmatch(name.tag)
    )


def name_at(place: Path) -> OllamaName | None:
    """The name of a manifest by its path below the manifests; None for any other file."""
    parts = place.parts
    if len(parts) != 4:  # noqa: PLR2004 - host, user, model and tag
        return None
    name = OllamaName(*parts)
    return name if is_allowed(name) else None


def speakable(text: str) -> str:
    """The text with `-` for what a part of a name may not have."""
    plain = re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).lstrip("-.")
    return plain[:LONGEST] or "model"
