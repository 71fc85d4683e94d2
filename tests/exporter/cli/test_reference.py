"""docs/cli.md against the commands themselves."""

from __future__ import annotations

from pathlib import Path

from exporter.cli.app import COMMANDS
from exporter.cli.reference import reference

CHECKOUT = Path(__file__).parents[3]


def test_the_page_is_what_the_commands_say(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    page = (CHECKOUT / "docs" / "cli.md").read_text(encoding="utf-8")

    assert page == reference(), "`make docs` writes it anew"
    assert all(f"## decant {name}\n" in page for name in COMMANDS)
