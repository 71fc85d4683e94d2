"""Models with an adapter each, and a server that all may ask."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.core.silence import one_thread
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.llamacpp.toolchain import Toolchain
from tests.support.encoder_decoders import ANSWERS, KINDS, Made, Served, serving
from tests.support.tiny_t5 import adapt_t5, make_t5, teach_mt5


@pytest.fixture(scope="session")
def made(toolchain, tmp_path_factory) -> dict[str, Made]:
    """A T5 and an MT5 with a LoRA each, merged by our own export. Treat as read-only.

    Training takes long: of pytest's processes the first does it, for all of them.
    """
    root: Path = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a folder of its own in the run's
        root = root.parent
    folder = root / "encoder-decoders"
    models = {kind: Made(folder / kind) for kind in KINDS}
    with (root / "encoder-decoders.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            with one_thread():  # for models so small, threads that wait for each other cost most
                make(models, toolchain)
            (folder / "complete").touch()
    return models


def make(models: dict[str, Made], toolchain: Toolchain) -> None:
    for kind, model in models.items():
        if kind == "T5":
            adapt_t5(make_t5(model.base), model.lora)
        else:
            teach_mt5(model.base, model.lora, ANSWERS)
        quant = "F32" if kind == "T5" else "F16"
        adapters = ((model.lora, 1.0),)
        export(ExportRequest(adapters, model.base, (quant,), (model.gguf,)), toolchain)


@pytest.fixture(scope="session")
def taught(made, toolchain) -> Iterator[Served]:
    """A server of the MT5, which knows ANSWERS. Leave it as it was."""
    with serving(made["MT5"].gguf, toolchain.folder) as served:
        yield served
