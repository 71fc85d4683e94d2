"""The options of `decant chat`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.chat.repl.set_options import BY_NAME
from runtime.engine.speculation import OFF


@dataclass(frozen=True, slots=True)
class Options:
    """The values of the command line's options."""

    model: str | None
    prompt: str | None
    system: str | None
    max_tokens: int | None
    temperature: float | None
    seed: int | None
    context: int | None
    threads: int | None
    adapters: tuple[str, ...]
    base: str | None
    projector: Path | None
    chat_template: str | None
    raw: bool
    url: str | None
    key_file: Path | None
    remote_model: str | None
    markdown: bool
    stats: bool
    save: bool
    go_on: bool
    resume: str | None
    list_: bool
    force: bool
    verbose: bool
    as_json: bool
    quiet: bool
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    stop: tuple[str, ...] = ()
    json_schema: Path | None = None
    grammar: Path | None = None
    thinking: bool | None = None
    files: tuple[Path, ...] = ()
    gpu_layers: int | None = None
    delete: str | None = None
    spec: str = OFF.kind

    @property
    def for_local_models(self) -> list[str]:
        """The given options that a server decides by itself."""
        values = {
            "--adapter": self.adapters, "--mmproj": self.projector, "--ctx": self.context,
            "--chat-template": self.chat_template, "--threads": self.threads, "--base": self.base,
            "-ngl": self.gpu_layers, "--spec": self.spec if self.spec != OFF.kind else None,
        }  # fmt: skip
        return [name for name, value in values.items() if value not in (None, ())]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the user gave, by `/set`'s names; the engine has defaults for others.

        Raises InputError for a file that holds no JSON schema or no text.
        """
        plain = ("temperature", "max_tokens", "seed", "top_p", "top_k", "min_p", "repeat_penalty",
                 "thinking")  # fmt: skip
        found = {name: getattr(self, name) for name in plain}
        found["stop"] = list(self.stop) or None
        for name in ("json_schema", "grammar"):
            if path := getattr(self, name):
                found[name] = BY_NAME[name].parse(str(path))
        return {name: value for name, value in found.items() if value is not None}
