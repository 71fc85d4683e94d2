"""docs/cli.md against the commands themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from exporter.cli.app import COMMANDS
from exporter.cli.outputs.registry import FORMATS
from exporter.cli.reference import with_formats

CHECKOUT = Path(__file__).parents[3]


@pytest.mark.lasting
def test_the_page_is_what_the_commands_say():
    """In a fresh process: click keeps the help option that a command was first asked with."""
    code = "from exporter.cli.reference import reference; print(reference(), end='')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    page = (CHECKOUT / "docs" / "cli.md").read_text(encoding="utf-8")

    assert page == done.stdout, "`make docs` writes it anew"
    assert all(f"## decant {name}\n" in page for name in COMMANDS)


def test_a_page_lists_the_formats():
    page = (CHECKOUT / "docs" / "export.md").read_text(encoding="utf-8")

    assert page == with_formats(page), "`make docs` writes it anew"
    assert all(f"| `--to {name}` |" in page for name in FORMATS)
