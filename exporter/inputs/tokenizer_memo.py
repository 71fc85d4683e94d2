"""transformers' tokenizer of a folder, loaded once for all steps of an export.

A vocabulary of 128,000 tokens takes most of a second to load; the converter asks for it, and so
does the verification that follows.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

SUFFIXES = {".json", ".model", ".txt", ".jinja", ".tiktoken", ".vocab", ".bpe", ".py"}
"""Of the files from which transformers makes a tokenizer."""
REMOTE_CODE = b'"auto_map"'
"""The key in a config that names a class in the folder's own code."""


class TokenizerMemo:
    """The tokenizer that was loaded last, with the content of its folder's files."""

    def __init__(self) -> None:
        self.key: tuple[str, bool] | None = None
        self.tokenizer: Any = None

    def load(self, folder: Path, *, trust_remote_code: bool = False, **options: Any) -> Any:
        """The tokenizer that AutoTokenizer.from_pretrained gives for these files.

        options: passed on; they must not change the result. Raises what transformers raises.
        """
        from transformers import AutoTokenizer

        content, has_code = fingerprint(folder)
        key = content, trust_remote_code and has_code
        if key != self.key:
            self.key, self.tokenizer = None, None  # frees it before the next one is loaded
            load = AutoTokenizer.from_pretrained
            self.tokenizer = load(folder, trust_remote_code=trust_remote_code, **options)
            self.key = key
        return self.tokenizer


MEMO = TokenizerMemo()


def fingerprint(folder: Path) -> tuple[str, bool]:
    """Hash of the names and contents of a folder's tokenizer files; whether they name code."""
    found, has_code = hashlib.sha256(), False
    within = (folder / "additional_chat_templates").glob("*")
    for path in sorted((*folder.iterdir(), *within)):
        if path.suffix in SUFFIXES and path.is_file():
            content = path.read_bytes()
            has_code = has_code or REMOTE_CODE in content
            name = str(path.relative_to(folder)).encode()
            for part in (name, content):
                found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest(), has_code
