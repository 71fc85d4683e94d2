"""A model's config with transformers' defaults, read ahead by a process of its own.

Before transformers 5 gives a config it imports torch's compiler and distributed tensors, which
takes longer than all the rest of a plan. Where it finds no torch it does without them, and the
config is the same; so it is asked for in a process that finds none, while this one imports torch.
"""

from __future__ import annotations

import ast
import gc
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from exporter.convert.upstream_fixes import mend

TIMEOUT = 60.0  # seconds; whatever comes late is read in this process
ASK = """
import ast, gc, importlib.util, json, sys
gc.disable()
sys.path[:] = json.loads(sys.argv[1])
find = importlib.util.find_spec
hidden = ("torch", "torchvision", "PIL")
importlib.util.find_spec = lambda name, package=None: (
    None if name.partition(".")[0] in hidden else find(name, package)
)
from transformers import AutoConfig
found = AutoConfig.from_pretrained(sys.argv[2], trust_remote_code=False).to_dict()
assert "torch" not in sys.modules and ast.literal_eval(repr(found)) == found
print(ascii(found))
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
        """The config as a Python literal; nothing where it could not be read."""
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
    """Stands in for transformers' in llama.cpp's converter: transformers is not imported for it."""

    @staticmethod
    def from_pretrained(folder: Path | str, **options: Any) -> Any:
        ahead = AHEAD.get(Path(folder))
        if ahead and (printed := ahead.wait()):
            return Config(printed)
        import transformers

        return transformers.AutoConfig.from_pretrained(folder, **options)


class Config:
    """What the converter asks of a config."""

    def __init__(self, printed: bytes) -> None:
        """Keep its text."""
        self.printed = printed

    def to_dict(self) -> dict[str, Any]:
        """New each time, for the converter changes it."""
        found: dict[str, Any] = ast.literal_eval(self.printed.decode())
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


def conversion() -> ModuleType:
    """llama.cpp's package, when it is importable; importing it does not import transformers."""
    stand_in = ModuleType("transformers")
    is_first = sys.modules.setdefault("transformers", stand_in) is stand_in
    vars(stand_in)["AutoConfig"] = AutoConfig
    collects = gc.isenabled()
    gc.disable()  # an import of torch makes a million objects and no garbage
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
    """The config in `folder` as llama.cpp's classes read it, mended."""
    found = conversion().ModelBase.load_hparams(folder, is_mistral_format=False)
    return mend(found, folder)
