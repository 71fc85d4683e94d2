"""The demo's models: a tiny base and a LoRA on it, trained on this machine and kept."""

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
    """Two trained folders, and what to ask them."""

    base: Path
    adapter: Path
    questions: tuple[str, ...] = DEMO_QUESTIONS


def make_demo_models(folder: Path, *, report: Report = silent) -> DemoModels:
    """The trained models in `folder`, trained now (about a minute) unless they are there.

    They lie under a hash of the corpus, the settings and the packages' versions. A training
    that is interrupted leaves nothing that counts; a second one at once waits for the first.
    Raises ToolchainError when a package is missing.
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
    """Identifies what training would make, without loading a package."""
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
