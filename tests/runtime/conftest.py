"""Models to talk to: the demo's, and one that never stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.demo import DemoModels, make_demo_models
from exporter.lora import LoraRequest, export_lora
from exporter.pipeline import ExportRequest, export
from exporter.toolchain import cache_folder
from tests.tiny import make_adapter, make_base


@pytest.fixture(scope="session")
def demo_models() -> DemoModels:
    return make_demo_models(cache_folder() / "demo")


@pytest.fixture(scope="session")
def pirate(demo_models, toolchain, tmp_path_factory) -> Path:
    """The demo's fine-tune as a Q4_K_M GGUF. Treat as read-only."""
    output = tmp_path_factory.mktemp("pirate") / "pirate-Q4_K_M.gguf"
    adapters = ((demo_models.adapter, 1.0),)
    export(ExportRequest(adapters, demo_models.base, ("Q4_K_M",), (output,)), toolchain)
    return output


@pytest.fixture(scope="session")
def demo_base(demo_models, toolchain, tmp_path_factory) -> Path:
    """The demo's base as a Q4_K_M GGUF. Treat as read-only."""
    output = tmp_path_factory.mktemp("base") / "base-Q4_K_M.gguf"
    export(ExportRequest((), demo_models.base, ("Q4_K_M",), (output,)), toolchain)
    return output


@pytest.fixture(scope="session")
def pirate_lora(demo_models, toolchain, tmp_path_factory) -> Path:
    """The demo's adapter as a GGUF of its own."""
    path = tmp_path_factory.mktemp("lora") / "pirate.lora.gguf"
    return export_lora(LoraRequest(demo_models.adapter, demo_models.base, path), toolchain).path


@pytest.fixture(scope="session")
def noise_lora(demo_models, toolchain, tmp_path_factory) -> Path:
    """Another adapter for the demo's base, of random numbers."""
    folder = make_adapter(tmp_path_factory.mktemp("noise") / "noise", demo_models.base)
    path = folder.parent / "noise.lora.gguf"
    return export_lora(LoraRequest(folder, demo_models.base, path), toolchain).path


@pytest.fixture(scope="session")
def endless(toolchain, tmp_path_factory) -> Path:
    """A model of random weights that goes on for long."""
    folder = tmp_path_factory.mktemp("endless")
    base = make_base(
        folder / "endless", max_position_embeddings=32768, num_hidden_layers=8, hidden_size=512,
        intermediate_size=2048,
    )  # fmt: skip
    output = folder / "endless-Q8_0.gguf"
    export(ExportRequest((), base, ("Q8_0",), (output,)), toolchain)
    return output
