"""Vectors and scores of `decant serve`, against transformers' own, one text at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.pipeline import ExportRequest, export
from tests.embedders import make_embedder, vectors
from tests.runtime.gateway.conftest import Served, serving

pytestmark = pytest.mark.llamacpp

TEXTS = [
    "the cat sat on the mat",
    "where does a bee live",
    "a",
    "to be or not to be, " * 9,
    "hello",
]
LIST = TEXTS * 4
EMBEDDERS = {"causal-mean": ("qwen3", "mean"), "causal-last": ("qwen3", "last"),
             "bert-mean": ("bert", "mean"), "bert-cls": ("bert", "cls")}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Embedders as sentence-transformers saves them, by name. Treat as read-only."""
    root = tmp_path_factory.mktemp("embedders")
    return {name: make_embedder(root / name, *how) for name, how in EMBEDDERS.items()}


@pytest.fixture(scope="module")
def served(folders, toolchain, tmp_path_factory) -> Iterator[Served]:
    """All of them at once."""
    root = tmp_path_factory.mktemp("served")
    files = [root / f"{name}.gguf" for name in folders]
    for folder, file in zip(folders.values(), files, strict=True):
        export(ExportRequest((), folder, ("F32",), (file,)), toolchain)
    with serving(root, *files) as found:
        yield found


def asked(served: Served, model: str, texts: object, **more: Any) -> np.ndarray[Any, Any]:
    """The vectors of texts that are asked for at once: (texts, width)."""
    status, body = served.ask("/v1/embeddings", {"model": model, "input": texts, **more})
    assert status == 200, body
    return np.array([entry["embedding"] for entry in body["data"]])


def reference(folder: Path, texts: list[str], pooling: str) -> np.ndarray[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    return np.asarray(vectors(model, AutoTokenizer.from_pretrained(folder), texts, pooling))


@pytest.mark.parametrize("name", EMBEDDERS)
def test_each_vector_of_a_list_is_that_of_the_text_alone(name, served, folders):
    together = asked(served, name, LIST)
    alone = np.concatenate([asked(served, name, text) for text in TEXTS])
    expected = reference(folders[name], TEXTS, EMBEDDERS[name][1])

    assert np.abs(together - np.tile(alone, (4, 1))).max() < 1e-5
    assert np.abs(alone - expected).max() < 1e-3  # llama.cpp keeps keys and values in 16 bits
    assert expected[0] @ expected[1] < 0.999  # or any two texts would do


def test_a_text_may_be_as_long_as_the_context_and_no_longer(served, folders):
    """256 tokens with those that begin and end it, in a list beside others."""
    whole, more = "a " * 254, "a " * 255
    expected = reference(folders["bert-mean"], [whole], "mean")
    found = asked(served, "bert-mean", ["hello", whole, "to be", whole])
    status, body = served.ask("/v1/embeddings", {"model": "bert-mean", "input": ["a", more]})

    assert np.abs(found[[1, 3]] - expected).max() < 1e-3
    assert status == 400
    assert body["error"]["message"].startswith("a text has 257 tokens, and this model takes 256")
    assert body["error"]["code"] == "context_length_exceeded"
