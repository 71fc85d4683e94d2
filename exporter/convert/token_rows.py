"""Tokens without an embedding row: left out if nothing needs them, otherwise refused."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from exporter.core.atomic_file import read_json_object
from exporter.core.errors import CheckpointError
from exporter.core.events import Note, Report
from exporter.inputs.tokenizer import LoadedTokenizer

NEEDED = ("bos", "eos", "unk", "sep", "cls")
"""Roles whose token can occur in a text; padding and masks never do."""
NAMING = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files that name tokens beside tokenizer.json."""
FEW = 3  # tokens named in a message
HINT = "copy the base's files again"
GONE = object()


def rows_of(hparams: Mapping[str, Any]) -> int | None:
    """Rows of a config's embedding, also that of a vision model's text part."""
    text = hparams.get("text_config")
    found = {**hparams, **(text if isinstance(text, dict) else {})}.get("vocab_size")
    return found if isinstance(found, int) else None


def rowless(loaded: LoadedTokenizer, rows: int | None) -> dict[int, str]:
    """The tokens without a row, by id."""
    if rows is None:
        return {}
    return {number: text for text, number in loaded.vocabulary.items() if number >= rows}


def leave_out(
    loaded: LoadedTokenizer, folder: Path, rows: int, templates: str, report: Report
) -> dict[str, bytes]:
    """The token files of `folder` without tokens that have no row, and a note about them.

    templates: the chat templates' text. Raises CheckpointError, with both numbers, if a role, a
    template or a user's text needs such a token.
    """
    without = rowless(loaded, rows)
    if not without:
        return {}
    refuse_needed(loaded, without, rows, templates)
    named = ", ".join(f"`{text}`" for text in list(without.values())[:FEW])
    are, them = ("is", "it") if len(without) == 1 else ("are", "them")
    report(
        Note(
            f"the tokenizer has {max(without) + 1} tokens and the embedding {rows} rows:"
            f" {named}{'…' if len(without) > FEW else ''} {are} left out, for nothing uses {them}"
        )
    )
    texts = set(without.values())
    files = {
        name: json.dumps(scrubbed(read_file(path), texts)).encode()
        for name in NAMING
        if (path := folder / name).is_file()
    }
    whole = folder / "tokenizer.json"
    if whole.is_file():
        files[whole.name] = json.dumps(shortened(read_file(whole), rows)).encode()
    return files


def refuse_needed(
    loaded: LoadedTokenizer, without: Mapping[int, str], rows: int, templates: str
) -> None:
    """Raise CheckpointError if a token without a row is needed by a role, a template or texts."""
    roles = {loaded.special(role): f"it is the {role} token" for role in NEEDED}
    for number, text in sorted(without.items()):
        why = roles.get(number)
        if why is None and text in templates:
            why = "the chat template uses it"
        if why is None and not getattr(loaded.added.get(number), "special", False):
            why = "it is a word that texts may hold"
        if why:
            raise CheckpointError(
                f"the tokenizer has {max(without) + 1} tokens and the embedding {rows} rows:"
                f" token {number} `{text}` has none, and {why}",
                hint="train with `modules_to_save` of the embedding and the head, so that the rows"
                " of new tokens are saved; or restore the base's own tokenizer files",
            )


def read_file(path: Path) -> dict[str, Any]:
    return read_json_object(path, error=CheckpointError, hint=HINT)


def scrubbed(value: Any, texts: Collection[str]) -> Any:
    """A JSON value without the entries that are, or name, one of the texts."""
    if isinstance(value, str):
        return GONE if value in texts else value
    if isinstance(value, list):
        return [left for item in value if (left := scrubbed(item, texts)) is not GONE]
    if not isinstance(value, dict):
        return value
    content = value.get("content")
    if isinstance(content, str) and content in texts:
        return GONE
    items = ((key, scrubbed(item, texts)) for key, item in value.items() if key not in texts)
    return {key: item for key, item in items if item is not GONE}


def shortened(written: dict[str, Any], rows: int) -> dict[str, Any]:
    """A tokenizer.json with only the tokens below `rows`."""
    tokens = [token for token in written.get("added_tokens") or () if token["id"] < rows]
    model = dict(written.get("model") or {})
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict) and max(vocabulary.values(), default=0) >= rows:
        kept = {text: number for text, number in vocabulary.items() if number < rows}
        merges = model.get("merges")
        model["vocab"] = kept
        if merges is not None:
            model["merges"] = [merge for merge in merges if made_by(merge) in kept]
    elif isinstance(vocabulary, list):
        model["vocab"] = vocabulary[:rows]
    return {**written, "added_tokens": tokens, "model": model, "padding": None}


def made_by(merge: str | list[str]) -> str:
    """The token that a merge produces."""
    return "".join(merge.split(" ") if isinstance(merge, str) else merge)
