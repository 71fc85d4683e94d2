"""transformers' tokenizer of a folder, loaded once for all steps of an export.

A vocabulary of 128,000 tokens takes most of a second to load, and its files 40 ms to hash; the
converter asks for it, and so does the verification that follows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.core.last_value import LastValue

SUFFIXES = {".json", ".model", ".txt", ".jinja", ".tiktoken", ".vocab", ".bpe", ".py"}
"""Suffixes of the files from which transformers makes a tokenizer."""
NAMED = "tokenizer"
"""The beginning of names of further ones, such as tokenizer.model.v3."""
REMOTE_CODE = b'"auto_map"'
"""The key in a config that names a class in the folder's own code."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The content of a folder's tokenizer files, which are hashed once for several steps."""

    folder: Path
    content: str
    """Hash of their names and contents."""
    has_code: bool
    """Whether they name a class in the folder's own code."""

    def laid_over(self, folder: Path, changed: Mapping[str, bytes]) -> TokenizerFiles:
        """The files of `folder`: these files, with the `changed` ones added or replaced."""
        content, has_code = hashed([("", self.content.encode()), *sorted(changed.items())])
        return TokenizerFiles(folder, content, has_code or self.has_code)


class TokenizerMemo(LastValue[tuple[str, bool], Any]):
    """The tokenizer that was loaded last, by its files' content and whether their code may run."""

    def load(
        self, source: Path | TokenizerFiles, *, trust_remote_code: bool = False, **options: Any
    ) -> Any:
        """The tokenizer that AutoTokenizer.from_pretrained gives for these files.

        source: a folder, or its files if they are hashed already; options: passed on; they must not
        change the result. Raises what transformers raises, and OSError for an unreadable file.
        """
        from transformers import AutoTokenizer

        files = source if isinstance(source, TokenizerFiles) else tokenizer_files(source)
        key = files.content, trust_remote_code and files.has_code
        found = self.get(key)
        if found is None:
            self.forget()  # before the next one is loaded
            load = AutoTokenizer.from_pretrained
            found = load(files.folder, trust_remote_code=trust_remote_code, **options)
            self.keep(key, found)
        return found


MEMO = TokenizerMemo()


def tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read and hash a folder's tokenizer files. Raises OSError for one that cannot be read."""
    within = (folder / "additional_chat_templates").glob("*")
    paths = sorted((*folder.iterdir(), *within))
    content, has_code = hashed(
        (str(path.relative_to(folder)), path.read_bytes())
        for path in paths
        if (path.suffix in SUFFIXES or path.name.startswith(NAMED)) and path.is_file()
    )
    return TokenizerFiles(folder, content, has_code)


def hashed(files: Iterable[tuple[str, bytes]]) -> tuple[str, bool]:
    """Hash of names and contents; whether one of the contents names code."""
    found, has_code = hashlib.sha256(), False
    for name, content in files:
        has_code = has_code or REMOTE_CODE in content
        for part in (name.encode(), content):
            found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest(), has_code
