"""Child process: prints a folder's config as a Python literal, with torch hidden from transformers.

Run as a script with sys.path (JSON) and the folder as arguments, before any import of transformers.
"""

from __future__ import annotations

import ast
import gc
import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec

HIDDEN = ("torch", "torchvision", "PIL")
"""Packages without which transformers imports far less and gives the same config."""


def hide_packages() -> None:
    """Make HIDDEN look absent to `importlib.util.find_spec`, which transformers uses."""
    find = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] in HIDDEN else find(name, package)

    importlib.util.find_spec = find_spec


def main() -> None:
    gc.disable()
    sys.path[:] = json.loads(sys.argv[1])
    hide_packages()
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(sys.argv[2], trust_remote_code=False).to_dict()
    assert "torch" not in sys.modules
    assert ast.literal_eval(repr(found)) == found
    sys.stdout.write(ascii(found) + "\n")


if __name__ == "__main__":
    main()
