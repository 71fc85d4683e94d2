"""A model's config with transformers' defaults, read ahead by a process of its own.

Before transformers 5 gives a config it imports torch's compiler and distributed tensors, which
takes longer than all the rest of a plan. Where it finds no torch it does without them, and the
config is the same; so it is asked for in a process that finds none, while this one imports torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exporter.settings import mend

TIMEOUT = 60.0  # seconds; whatever comes late is read in this process
ASK = """
import importlib.util, json, sys
sys.path[:] = json.loads(sys.argv[1])
find = importlib.util.find_spec
hidden = ("torch", "torchvision", "PIL")
importlib.util.find_spec = lambda name, package=None: (
    None if name.partition(".")[0] in hidden else find(name, package)
)
from transformers import AutoConfig
found = AutoConfig.from_pretrained(sys.argv[2], trust_remote_code=False).to_dict()
assert "torch" not in sys.modules
print(json.dumps(found))
"""


class ReadConfig:
    """The process, and what it finds."""

    def __init__(self, folder: Path) -> None:
        """Start it."""
        self.folder = folder
        argv = [sys.executable, "-I", "-c", ASK, json.dumps(sys.path), str(folder.absolute())]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.printed: bytes | None = None

    def wait(self) -> bytes:
        """The config as JSON; nothing where it could not be read."""
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


class AutoConfig:
    """Stands in for transformers' while llama.cpp's converter runs."""

    def __init__(self, ahead: ReadConfig, original: Any) -> None:
        """Ask `original` for whatever was not read ahead."""
        self.ahead, self.original = ahead, original

    def from_pretrained(self, folder: Path | str, **options: Any) -> Any:
        if Path(folder) == self.ahead.folder and (printed := self.ahead.wait()):
            return Config(printed)
        return self.original.from_pretrained(folder, **options)


class Config:
    """What the converter asks of a config."""

    def __init__(self, printed: bytes) -> None:
        """Keep its JSON."""
        self.printed = printed

    def to_dict(self) -> dict[str, Any]:
        """New each time, for the converter changes it."""
        found: dict[str, Any] = json.loads(self.printed)
        return found


AHEAD: dict[Path, ReadConfig] = {}
"""By folder: configs that are being read."""


@contextmanager
def read_ahead(folder: Path) -> Iterator[None]:
    """Have the converter find the config of `folder` ready, inside the block."""
    if "transformers.configuration_utils" in sys.modules or folder in AHEAD:
        yield  # it takes no time any more
        return
    AHEAD[folder] = ReadConfig(folder)
    try:
        yield
    finally:
        AHEAD.pop(folder).end()


@contextmanager
def configs_ahead(folder: Path) -> Iterator[None]:
    """Hand the converter what was read ahead of `folder`, if anything was."""
    from conversion import base

    if folder not in AHEAD:
        yield
        return
    original = base.AutoConfig
    base.AutoConfig = AutoConfig(AHEAD[folder], original)
    try:
        yield
    finally:
        base.AutoConfig = original


def load_hparams(folder: Path) -> dict[str, Any]:
    """The config in `folder` as llama.cpp's classes read it, mended."""
    from conversion import ModelBase

    with configs_ahead(folder):
        return mend(ModelBase.load_hparams(folder, is_mistral_format=False), folder)
