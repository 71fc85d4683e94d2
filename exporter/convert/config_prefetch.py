"""Reads a model's config with transformers' defaults in a child process, ahead of time.

transformers 5 imports torch's compiler and distributed tensors before it returns a config, which
takes longer than the rest of a plan. Without torch it skips them and returns the same config. So a
child that hides torch reads the config while this process imports torch.
"""

from __future__ import annotations

import ast
import gc
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from exporter.convert.upstream_fixes import patch_settings
from exporter.core.last_value import LastValue

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


class AutoConfig:
    """Replaces transformers' class in llama.cpp's converter, without importing transformers."""

    @staticmethod
    def from_pretrained(folder: Path | str, **options: Any) -> Any:
        content = content_of(Path(folder))
        if content and (last := LAST.get(content)):
            return Config(last, folder)
        ahead = AHEAD.get(Path(folder))
        if ahead and (printed := ahead.wait()):
            LAST.keep(content, printed)
            return Config(printed)
        import transformers

        return transformers.AutoConfig.from_pretrained(folder, **options)


class Config:
    """The part of a config object that the converter uses."""

    def __init__(self, printed: bytes, folder: Path | str = "") -> None:
        """printed: a config as a Python literal; folder: to name in it, if read in another."""
        self.printed, self.folder = printed, folder

    def to_dict(self) -> dict[str, Any]:
        """A new dictionary on each call, since the converter changes it."""
        found: dict[str, Any] = ast.literal_eval(self.printed.decode())
        return read_from(self.folder, found) if self.folder else found


def read_from(folder: Path | str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as transformers reads them from `folder`, whose path is one of them."""
    return {**settings, PLACE: str(folder)}


AHEAD: dict[Path, ReadConfig] = {}
"""Configs that are being read, by folder."""


@contextmanager
def read_ahead(folder: Path) -> Iterator[None]:
    """Start reading the config of `folder`, which the converter then finds ready in the block."""
    if "transformers.configuration_utils" in sys.modules or folder in AHEAD:
        yield  # transformers is imported already, so that reading is fast
        return
    AHEAD[folder] = ReadConfig(folder)
    try:
        yield
    finally:
        AHEAD.pop(folder).end()


def conversion() -> ModuleType:
    """Import llama.cpp's package without importing transformers."""
    stand_in = ModuleType("transformers")
    is_first = sys.modules.setdefault("transformers", stand_in) is stand_in
    vars(stand_in)["AutoConfig"] = AutoConfig
    collects = gc.isenabled()
    gc.disable()  # importing torch creates a million objects and no garbage
    try:
        base = importlib.import_module("conversion.base")
    finally:
        if is_first:
            del sys.modules["transformers"]
        if collects:
            gc.enable()
    vars(base)["AutoConfig"] = AutoConfig
    return importlib.import_module("conversion")


def load_hparams(folder: Path) -> dict[str, Any]:
    """The config in `folder` as llama.cpp's classes read it, with decant's patches."""
    found = conversion().ModelBase.load_hparams(folder, is_mistral_format=False)
    return patch_settings(found, folder)
