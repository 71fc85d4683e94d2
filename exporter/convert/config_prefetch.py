"""Reads a model's config with transformers' defaults in a child process, ahead of time.

transformers 5 imports torch's compiler and distributed tensors before it returns a config, which
takes longer than the rest of a plan. Without torch it skips them and returns the same config. So a
child that hides torch reads the config while this process imports torch. What it printed is kept on
disk for the next export of the same base.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from exporter.convert.upstream_fixes import patch_settings
from exporter.core.kept_values import KeptValues
from exporter.core.last_value import LastValue
from exporter.core.paths import tokenizers_folder
from exporter.core.silence import no_collection

MOST = 32  # kept configs, of some kB
TIMEOUT = 60.0  # seconds; after it this process reads the config itself
PLACE = "_name_or_path"  # transformers' entry for the folder that it has read
CHILD = Path(__file__).with_name("config_child.py")


class ReadConfig:
    """A child process that reads one config."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        argv = [sys.executable, "-I", str(CHILD), json.dumps(sys.path), str(folder.absolute())]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.printed: bytes | None = None

    def wait(self) -> bytes:
        """The config as a Python literal; empty if the child failed."""
        if self.printed is None:
            try:
                self.printed, _ = self.process.communicate(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                self.end()
                self.printed = b""
        return self.printed if self.process.returncode == 0 else b""

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


LAST: LastValue[bytes, bytes] = LastValue()
"""The config that was read last, as it was printed, by the content of its config.json. An export's
verification reads it again.
"""


def content_of(folder: Path) -> bytes:
    """The folder's config.json; empty if it cannot be read."""
    try:
        return (folder / "config.json").read_bytes()
    except OSError:
        return b""


def known(content: bytes) -> bytes:
    """The config of a config.json with this content as it was printed before; empty if unknown."""
    if not content:
        return b""
    if (last := LAST.get(content)) is not None:
        return last
    kept, path = kept_at(content)
    value = kept.read(path)
    if not isinstance(value, str):
        return b""
    LAST.keep(content, value.encode())
    return value.encode()


def awaited(content: bytes) -> bytes:
    """The config that a child prints, which is then kept; empty without a child, or if it fails."""
    ahead = AHEAD.get(content)
    printed = ahead.wait() if ahead else b""
    if printed:
        LAST.keep(content, printed)
        kept, path = kept_at(content)
        kept.write(path, printed.decode())
    return printed


def kept_at(content: bytes) -> tuple[KeptValues, Path]:
    """Where the config of a config.json with this content is kept."""
    kept = KeptValues(tokenizers_folder(os.environ), "config", MOST)
    return kept, kept.path(["config", hashlib.sha256(content).hexdigest()])


class AutoConfig:
    """Replaces transformers' class in llama.cpp's converter, without importing transformers."""

    @staticmethod
    def from_pretrained(folder: Path | str, **options: Any) -> Any:
        content = content_of(Path(folder))
        if printed := known(content) or awaited(content):
            return Config(printed, folder)
        import transformers

        return transformers.AutoConfig.from_pretrained(folder, **options)


class Config:
    """The part of a config object that the converter uses."""

    def __init__(self, printed: bytes, folder: Path | str) -> None:
        """printed: a config as a Python literal; folder: to name in it."""
        self.printed, self.folder = printed, folder

    def to_dict(self) -> dict[str, Any]:
        """A new dictionary on each call, since the converter changes it."""
        found: dict[str, Any] = ast.literal_eval(self.printed.decode())
        return read_from(self.folder, found)


def read_from(folder: Path | str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as transformers reads them from `folder`, whose path is one of them."""
    return {**settings, PLACE: str(folder)}


AHEAD: dict[bytes, ReadConfig] = {}
"""Configs that are being read, by the content of their config.json."""


@contextmanager
def read_ahead(folder: Path) -> Iterator[None]:
    """Start reading the config of `folder`, which the converter then finds ready in the block."""
    content = content_of(folder)
    is_imported = "transformers.configuration_utils" in sys.modules  # so that reading is fast
    if not content or is_imported or content in AHEAD or known(content):
        yield
        return
    AHEAD[content] = ReadConfig(folder)
    try:
        yield
    finally:
        AHEAD.pop(content).end()


def conversion() -> ModuleType:
    """Import llama.cpp's package without importing transformers."""
    stand_in = ModuleType("transformers")
    is_first = sys.modules.setdefault("transformers", stand_in) is stand_in
    vars(stand_in)["AutoConfig"] = AutoConfig
    try:
        with no_collection():  # importing torch creates a million objects and no garbage
            base = importlib.import_module("conversion.base")
    finally:
        if is_first:
            del sys.modules["transformers"]
    vars(base)["AutoConfig"] = AutoConfig
    return importlib.import_module("conversion")


def load_hparams(folder: Path) -> dict[str, Any]:
    """The config in `folder` as llama.cpp's classes read it, with decant's patches."""
    found = conversion().ModelBase.load_hparams(folder, is_mistral_format=False)
    return patch_settings(found, folder)
