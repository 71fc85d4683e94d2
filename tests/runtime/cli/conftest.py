"""Models of three tokenizers, each with its GGUF."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from exporter.demo import make_demo_models
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.llamacpp.toolchain import cache_folder
from tests.support.other_tokenizers import make_bpe


def pour(base: Path, output: Path, toolchain) -> Path:
    export(ExportRequest((), base, ("F16",), (output,)), toolchain)
    return output


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="session")
def bpe(folder, tiny_base, toolchain) -> tuple[Path, Path]:
    """A byte-level base, and its GGUF. Treat as read-only, as the next two."""
    base = Path(shutil.copytree(tiny_base, folder / "bpe"))
    (base / "tokenizer.model").unlink()
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_bpe(base, toolchain, monkeypatch)
        return base, pour(base, folder / "bpe.gguf", toolchain)


@pytest.fixture(scope="session")
def prefixed(folder, tiny_base, toolchain) -> tuple[Path, Path]:
    """A sentencepiece base that puts a space before texts, and its GGUF."""
    return tiny_base, pour(tiny_base, folder / "prefixed.gguf", toolchain)


@pytest.fixture(scope="session")
def demo(folder, toolchain) -> tuple[Path, Path]:
    """The demo's sentencepiece base, which puts none, and its GGUF."""
    base = make_demo_models(cache_folder() / "demo").base
    return base, pour(base, folder / "demo.gguf", toolchain)


@pytest.fixture
def model(demo) -> Path:
    path: Path = demo[1]
    return path
