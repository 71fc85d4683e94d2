"""The demo's models: a tiny base and a LoRA, trained on this machine and cached."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from exporter.core.atomic_file import make_folder
from exporter.core.errors import ToolchainError
from exporter.core.events import Note, Report, silent
from exporter.core.file_lock import lock
from exporter.core.silence import quiet_libraries
from exporter.demo.corpus import DEMO_QUESTIONS
from exporter.demo.train import recipe, train_adapter, train_base

PACKAGES = ("torch", "transformers", "peft", "sentencepiece")


@dataclass(frozen=True, slots=True)
class DemoModels:
    """Two trained folders, and questions for them."""

    base: Path
    adapter: Path
    questions: tuple[str, ...] = DEMO_QUESTIONS


def make_demo_models(folder: Path, *, report: Report = silent) -> DemoModels:
    """The trained models in `folder`; the first call trains them, in about a minute.

    Their folder's name is a hash of corpus, settings and package versions. An interrupted training
    leaves nothing usable; a second one at the same time waits for the first. Raises ToolchainError
    if a package is missing.
    """
    home = folder / content_hash()
    if not home.exists():
        make_folder(folder)
        with home.with_suffix(".lock").open("w") as held:
            lock(held)
            if not home.exists():
                train_both(home, report)
    report(Note(f"demo models in `{home}`"))
    return DemoModels(home / "base", home / "adapter")


def train_both(home: Path, report: Report) -> None:
    """Train both in a folder beside `home`, and rename it when it is complete."""
    partial = home.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with quiet_libraries():
        train_base(partial / "base", report)
        train_adapter(partial / "adapter", partial / "base", str(home / "base"), report)
    partial.rename(home)


def content_hash() -> str:
    """A hash that identifies the training's result, computed without loading a package.

    Raises ToolchainError if a package is missing.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ToolchainError(
            f"the demo trains a model, which needs {', '.join(missing)}",
            hint="pip install 'decant-llm[export]'",
        )
    # a patch release trains the same models
    versions = {name: metadata.version(name).split(".")[:2] for name in PACKAGES}
    content = json.dumps([recipe(), versions], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
