"""Verdicts on a GGUF's tokenizer, kept for the next file with the very same one.

Exports of several adapters of a base write the same token keys. The checks of tokens, special
tokens and template compare nothing but these keys, read by llama.cpp, with the tokenizer's files,
read by transformers: for equal keys, files and programs they find the same again.
"""

from __future__ import annotations

import hashlib
import marshal
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exporter.convert.tokenizer_keys import PHI3
from exporter.core.gguf import Array, GGUFFile
from exporter.core.kept_values import KeptValues
from exporter.core.paths import tokenizers_folder
from exporter.llamacpp.toolchain import Toolchain
from exporter.verify.expected import Expected
from exporter.verify.verification import Check

MOST = 64  # verdicts of some kB
MARSHAL = 2  # the version that writes equal values alike
OF_TOKENS = ("tokenizer.", "decant.tokenizer.")
OTHER_KEYS = ("general.architecture", "general.alignment")
"""Keys beside the tokenizer's and the architecture's on which its loading depends."""


class KeptChecks:
    """The place of the checks of one file's tokenizer."""

    def __init__(self, file: GGUFFile, expected: Expected, toolchain: Toolchain, rows: int) -> None:
        """rows: of the embedding. `file` must hold whole arrays."""
        self.values = KeptValues(tokenizers_folder(os.environ), "checks", MOST)
        name = str(file.metadata.get("general.name", "")).lower()
        is_phi3 = any(phi in name for phi in PHI3)  # llama.cpp reads tokens by the model's name
        files = expected.conversion.tokenizer_hash
        self.marker = marker_of(self.values, toolchain, files)
        origins = (toolchain.folder.name, files, keys_hash(file), rows, is_phi3)
        self.path: Path | None = self.values.path(origins) if files else None

    def read(self) -> list[Check]:
        """The checks of an equal tokenizer, which found it right; empty without any."""
        value = self.values.read(self.path) if self.path is not None else None
        return [check_of(one) for one in value or ()]

    def keep(self, checks: Sequence[Check]) -> None:
        """Keep checks that found the tokenizer right."""
        if self.path is not None and all(check.ok and check.judged for check in checks):
            self.values.write(self.path, [asdict(check) for check in checks])
            self.values.write(self.marker, value=True)


def was_verified(toolchain: Toolchain, content: str) -> bool:
    """Whether checks of a tokenizer are kept, for one model at least.

    content: the hash of its files; empty for a tokenizer whose checks are never kept.
    """
    values = KeptValues(tokenizers_folder(os.environ), "checks", MOST)
    return bool(content) and values.read(marker_of(values, toolchain, content)) is True


def marker_of(values: KeptValues, toolchain: Toolchain, content: str) -> Path:
    """The place of the fact that a tokenizer with this content has been verified."""
    return values.path((toolchain.folder.name, content))


def keys_hash(file: GGUFFile) -> str:
    """Hash of the keys that llama.cpp's vocabulary and template depend on."""
    prefixes = (*OF_TOKENS, f"{file.architecture}.")
    keys = {
        key: (value.length, value.items) if isinstance(value, Array) else value
        for key, value in sorted(file.metadata.items())
        if key in OTHER_KEYS or key.startswith(prefixes)
    }
    return hashlib.sha256(marshal.dumps(keys, MARSHAL)).hexdigest()


def check_of(value: dict[str, Any]) -> Check:
    return Check(**{**value, "problems": tuple(value["problems"]), "notes": tuple(value["notes"])})
