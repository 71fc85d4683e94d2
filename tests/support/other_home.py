"""A home folder without the developer's stores; `ollama`, `lmstudio` and `cache` lie in it."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.other_stores import OllamaStore

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True, slots=True)
class OtherHome:
    """The stores of other programs, empty at first."""

    path: Path

    @property
    def ollama(self) -> OllamaStore:
        return OllamaStore(self.path / ".ollama" / "models")

    @property
    def lmstudio(self) -> Path:
        return self.path / ".lmstudio" / "models"

    @property
    def cache(self) -> Path:
        return self.path / "hub"

    @property
    def store(self) -> Path:
        """decant's own store."""
        return Path(os.environ["DECANT_STORE"])


def make_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> OtherHome:
    """Let HOME and all settings of other programs lead into `folder`."""
    from huggingface_hub import constants

    folder.mkdir(exist_ok=True)
    home = OtherHome(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setenv("OLLAMA_HOST", closed_address())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home.cache))
    return home


def closed_address() -> str:
    """An address at which nothing listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{closed.getsockname()[1]}"
