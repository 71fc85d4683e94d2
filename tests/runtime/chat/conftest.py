"""The data folder of a chat, and a chat with a base and an adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.repl_chats import GREEDY
from tests.support.terminal import chat


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Where conversations and the history go."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "decant"


@pytest.fixture
def two(demo_base, pirate_lora, home):
    """A chat with the demo's base and its adapter beside it."""
    with chat(demo_base, "--adapter", f"pirate={pirate_lora}", *GREEDY) as terminal:
        terminal.ready()
        yield terminal
