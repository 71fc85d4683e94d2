"""The questions of the tests of the chat at a terminal, and the folder of its conversations."""

from __future__ import annotations

import json
from pathlib import Path

FRANCE = "What is the capital of France?"
PLAIN, PIRATE = "The capital of France is Paris.", "Arr, the capital of France be Paris, matey!"
GREEDY = ("--temperature", "0")


def sessions(home: Path) -> list[Path]:
    return sorted((home / "chats").glob("*.jsonl"))


def events(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
