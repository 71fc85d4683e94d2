"""The models as Ollama's clients see them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from exporter.core.ggml_types import GGMLType
from exporter.core.gguf import Array, GGUFFile, TensorInfo
from runtime.engine.opened_model import Model
from runtime.gateway.asgi_app import build_app
from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog, ResolvedModel
from runtime.gateway.ollama.ollama_listing import capabilities, counted, shown, tag
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.settings import Settings


def resolved(path: Path, projector: Path | None = None, **metadata) -> ResolvedModel:
    if not path.exists():
        path.write_bytes(b"GGUF" + bytes(60))
    told = {
        "general.architecture": "llama", "general.file_type": 15, "llama.context_length": 512,
        **metadata,
    }  # fmt: skip
    tensors = (
        TensorInfo("a.weight", (1000, 1024), GGMLType.by_name("Q4_K"), 0, path),
        TensorInfo("b.weight", (200, 1024), GGMLType.by_name("F32"), 0, path),
    )
    header = GGUFFile(path, 64, told, tensors)
    return ResolvedModel("pirate", "pirate", Model(header, (), projector), None, ())


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        ({}, ["completion"]),
        ({"tokenizer.chat_template": "{% if tools %}"}, ["completion", "tools"]),
        ({"tokenizer.chat_template": "{{ enable_thinking }}"}, ["completion", "thinking"]),
        ({"tokenizer.chat_template": "<think>"}, ["completion", "thinking"]),
        ({"tokenizer.chat_template": "toolsmith rethinking"}, ["completion"]),
        ({"tokenizer.ggml.fim_pre_token_id": 3}, ["completion", "insert"]),
        ({"llama.pooling_type": 1}, ["embedding"]),
        ({"llama.pooling_type": 0}, ["completion"]),
        ({"llama.attention.causal": False}, ["embedding"]),
    ],
)
def test_what_a_model_can_do_is_read_off_its_header(tmp_path, metadata, found):
    assert capabilities(resolved(tmp_path / "m.gguf", **metadata)) == found


def test_a_model_with_a_projector_sees(tmp_path):
    model = resolved(tmp_path / "m.gguf", tmp_path / "mmproj.gguf")

    assert capabilities(model) == ["completion", "vision"]
    assert tag(model)["details"]["families"] == ["llama", "clip"]


def test_a_model_is_listed_with_its_details(tmp_path):
    import ollama

    told = tag(resolved(tmp_path / "m.gguf"))

    assert told["name"] == told["model"] == "pirate"
    assert told["size"] == 64
    assert re.fullmatch(r"[0-9a-f]{64}", told["digest"])
    assert told["details"] == {
        "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"],
        "parameter_size": "1M", "quantization_level": "Q4_K_M",
    }  # fmt: skip
    ollama.ListResponse(models=[told])


def test_a_file_that_does_not_say_its_quantization_is_known_by_most_of_its_bytes(tmp_path):
    told = tag(resolved(tmp_path / "m.gguf", **{"general.file_type": 4711}))

    assert told["details"]["quantization_level"] == "F32"


def test_the_digest_changes_with_the_file(tmp_path):
    path = tmp_path / "m.gguf"
    first = tag(resolved(path))["digest"]

    assert tag(resolved(path))["digest"] == first
    assert tag(resolved(path, **{"general.name": "x"}))["digest"] != first
    os.utime(path, ns=(0, 1))
    assert tag(resolved(path))["digest"] != first


def test_a_file_that_is_gone_is_still_listed(tmp_path):
    model = resolved(tmp_path / "m.gguf")
    model.model.header.path.unlink()

    assert tag(model)["size"] == 0


def test_metadata_is_shown_without_long_arrays_and_paths(tmp_path):
    import ollama

    secret = tmp_path / "home" / "me"
    model = resolved(
        tmp_path / "m.gguf",
        **{
            "general.name": "Pirate",
            "general.license": "mit",
            "general.base_model.0.repo_url": "https://huggingface.co/a/b",
            "decant.base": str(secret / "base"),
            "decant.other": "./base",
            "decant.windows": r"C:\Users\me",
            "quantize.imatrix.file": "me/imatrix.dat",
            "general.datasets": Array(2, ("a", f"file://{secret}")),
            "tokenizer.chat_template": "{{ x }}",
            "tokenizer.ggml.tokens": Array(32000, ("a", "b")),
            "tokenizer.ggml.pre": "default",
            "llama.some": Array(2, (1, 2)),
            "llama.rope.scale": float("nan"),
        },
    )
    told = shown(model)

    assert "me" not in re.findall(r"\w+", json.dumps(told, allow_nan=False))
    assert told["template"] == "{{ x }}"
    assert told["license"] == "mit"
    assert told["model_info"] == {
        "general.architecture": "llama", "general.file_type": 15, "llama.context_length": 512,
        "general.name": "Pirate", "general.license": "mit",
        "general.base_model.0.repo_url": "https://huggingface.co/a/b",
        "tokenizer.ggml.tokens": None, "tokenizer.ggml.pre": "default", "llama.some": [1, 2],
        "llama.rope.scale": None, "general.parameter_count": 1_228_800,
    }  # fmt: skip
    ollama.ShowResponse(**told)


@pytest.mark.parametrize(
    ("number", "text"),
    [(999, "999"), (2_800_000, "3M"), (137_000_000, "137M"), (1_000_000_000, "1.0B"),
     (70_600_000_000, "70.6B"), (4_000, "4K")],
)  # fmt: skip
def test_parameters_are_counted_as_on_model_cards(number, text):
    assert counted(number) == text


@pytest.mark.llamacpp
def test_a_model_that_only_makes_vectors_is_not_asked_for_answers(tmp_path, toolchain):
    embedder = resolved(tmp_path / "minilm.gguf", **{"llama.pooling_type": 1}).model
    settings = Settings()
    gateway = Gateway(settings, Catalog([embedder]), EnginePool(settings, toolchain))
    with TestClient(build_app(gateway), base_url="http://localhost") as client:
        for route, body in (("chat", {"messages": []}), ("generate", {"prompt": "x"})):
            refused = client.post(f"/api/{route}", json={"model": "minilm", **body})
            assert refused.status_code == 400
            assert refused.json() == {"error": f'"minilm" does not support {route}'}
        assert client.post("/api/show", json={"model": "minilm"}).json()["capabilities"] == [
            "embedding"
        ]
        assert client.get("/api/ps").json() == {"models": []}
