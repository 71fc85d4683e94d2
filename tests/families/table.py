"""Rows of docs/families.md, kept one file a family so that several processes may write them."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.families.cells import COLUMNS, ENGINE
from tests.families.models import FAMILIES
from tests.families.tokenizers import SOURCES

if TYPE_CHECKING:
    import pytest

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "families.md"
HEAD = """# Families

Written by `make families`: each family with its own settings, fewer and narrower layers, random weights and a LoRA.
The tokenizer is the family's own (real), that of a family it descends from, rebuilt from the vocabulary that llama.cpp's sources carry, or trained on a page of text with the family's pattern.

| column | ✓ means |
|---|---|
| export Q4_K_M | `decant export` ends with 0: merged, quantized, verified |
| verify | rows, tokens, template and settings are right, llama.cpp decodes with the file, and its predictions are as near to transformers' and peft's as 4 bits allow |
| tokens | llama.cpp cuts a corpus of many languages and code as transformers does |
| template, prompt ids | conversations reach the engine as `apply_chat_template` gives them, to the token |
| chat | one turn of `decant chat` |
| Ollama TEMPLATE | `--to ollama` writes one that gives the same prompts |
| --to lora, --to safetensors | the adapter alone works beside its base; the merged checkpoint equals the unmerged forward |

R: refused, with the reason; –: does not apply.

"""


def shared_folder(config: pytest.Config) -> Path:
    """Where all processes of one run keep their rows."""
    worker = getattr(config, "workerinput", None)
    run = worker["testrunuid"] if worker else config.getoption("testrunuid", None) or "alone"
    return Path(tempfile.gettempdir()) / f"decant-families-{run}"


def keep_row(config: pytest.Config, name: str, row: dict[str, str]) -> None:
    folder = shared_folder(config)
    folder.mkdir(exist_ok=True)
    (folder / f"{list(FAMILIES).index(name):03}.json").write_text(json.dumps([name, row]))


def write_page(config: pytest.Config) -> None:
    """Write the page, where every family has a row."""
    folder = shared_folder(config)
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    shutil.rmtree(folder, ignore_errors=True)
    if [name for name, _ in rows] == list(FAMILIES):
        PAGE.write_text(page(rows))


def page(rows: list[tuple[str, dict[str, str]]]) -> str:
    """The table, with what is more than a mark as numbered notes below it."""
    columns = [*COLUMNS, *ENGINE]
    notes: list[str] = []

    def short(cell: str) -> str:
        mark, _, note = cell.partition(": ")
        if not note:
            return mark
        if note not in notes:
            notes.append(note)
        return f"{mark} [{notes.index(note) + 1}]"

    lines = [
        "| " + " | ".join(["family", "tokenizer", *columns]) + " |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for name, row in rows:
        cells = [short(row.get(column, "–")) for column in columns]
        origin = SOURCES[FAMILIES[name].tokenizer].origin
        lines.append("| " + " | ".join([name, origin, *cells]) + " |")
    told = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return HEAD + "\n".join([*lines, "", *told]) + "\n"
