"""The template, the system message and the parameters of a model of Ollama's.

decant takes the chat template in the GGUF; for the rest it shows options of `decant chat`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from exporter.core.errors import ModelError
from exporter.core.events import Note, Report, Warn
from exporter.core.gguf import GGUFFile
from exporter.core.terminal_text import without_controls
from exporter.stores.ollama_manifest import LARGEST, Manifest

OPTIONS = {
    "temperature": "--temperature", "top_p": "--top-p", "top_k": "--top-k", "min_p": "--min-p",
    "repeat_penalty": "--repeat-penalty", "stop": "--stop", "num_ctx": "--ctx",
    "num_predict": "--max-tokens", "seed": "--seed",
}  # fmt: skip
"""Ollama's parameters -> the options of `decant chat`."""
UNSAID = {"draft": "a draft model", "messages": "the messages it begins with"}
LONG = 100  # characters of a system message that are shown


def say_settings(manifest: Manifest, header: GGUFFile, name: str, *, report: Report) -> None:
    """Report what is not taken along, and the options that give the same.

    name: the model's in decant's store.
    """
    if manifest.of("template") or manifest.of("prompt"):
        if header.text("tokenizer.chat_template"):
            report(Note("decant uses the chat template in the GGUF, not Ollama's TEMPLATE"))
        else:
            report(
                Warn(
                    "the GGUF has no chat template, and Ollama's TEMPLATE cannot be taken: `decant"
                    f" chat {name} --chat-template NAME|FILE` gives it one"
                )
            )
    if options := list(options_of(manifest)):
        report(Note(f"with Ollama's settings: decant chat {name} {' '.join(options)}"))
    for kind, what in UNSAID.items():
        if manifest.of(kind):
            report(Note(f"not taken: {what}"))


def options_of(manifest: Manifest) -> Iterator[str]:
    """The options of `decant chat` for a model's parameters and its system message."""
    for text in texts(manifest, "params"):
        yield from parameters(text)
    for text in texts(manifest, "system"):
        plain = without_controls(text)
        shown = plain if len(plain) <= LONG else f"{plain[:LONG]}…"
        yield f"--system {shlex.quote(shown)}"


def parameters(text: str) -> Iterator[str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return
    values: dict[str, Any] = found if isinstance(found, dict) else {}  # any JSON
    for key, option in OPTIONS.items():
        value = values.get(key)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int | float | str) and not isinstance(one, bool):
                yield f"{option} {shlex.quote(without_controls(str(one)))}"


def texts(manifest: Manifest, kind: str) -> Iterator[str]:
    """The texts of a kind of layer; a missing or a huge one is left out."""
    for layer in manifest.of(kind):
        try:
            file = manifest.file(layer)
        except ModelError:
            continue
        if layer.nbytes <= LARGEST:
            yield file.path.read_text(encoding="utf-8", errors="replace")
