"""What a model is for, and what is said where it is asked for something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporter.core.errors import UnsupportedError
from exporter.core.ggml_types import GGMLType
from exporter.core.gguf import GGUFFile, TensorInfo
from runtime.cli.serve_command import example_of
from runtime.engine.local import LocalEngine
from runtime.engine.memory_fit import FitOptions
from runtime.engine.opened_model import Model
from runtime.engine.purpose import purpose_of
from runtime.gateway.api_errors import ApiError
from runtime.gateway.body import prepared
from runtime.gateway.catalog import Catalog
from runtime.gateway.settings import Settings


def header(architecture: str, head: str = "", **keys: Any) -> GGUFFile:
    known = {f"{architecture}.{name.replace('__', '.')}": value for name, value in keys.items()}
    path = Path(f"{architecture}.gguf")
    tensors = (TensorInfo(head, (1, 1), GGMLType.by_name("F32"), 0, path),) if head else ()
    return GGUFFile(path, 0, {"general.architecture": architecture, **known}, tensors)


KINDS = {
    "answers": [header("llama"), header("qwen3", pooling_type=0), header("t5")],
    "vectors": [header("qwen3", pooling_type=3), header("bert", attention__causal=False),
                header("t5encoder")],
    "ranks": [header("qwen3", pooling_type=4), header("bert", "cls.weight")],
}  # fmt: skip


@pytest.mark.parametrize("purpose", KINDS)
def test_a_models_purpose_is_read_from_its_header(purpose):
    assert {purpose_of(one) for one in KINDS[purpose]} == {purpose}


@pytest.mark.parametrize(("purpose", "route"), [("vectors", "embeddings"), ("ranks", "rerank")])
def test_chat_and_serve_refuse_with_what_to_ask(purpose, route):
    for one in KINDS[purpose]:
        catalog = Catalog([Model(one, chat_template="{{ messages }}")])
        named = catalog.find(None)

        with pytest.raises(UnsupportedError) as chat:
            LocalEngine(named.model, FitOptions())
        for path in ("/v1/chat/completions", "/v1/messages", "/v1/completions"):
            with pytest.raises(ApiError, match=f"ask /v1/{route}"):
                prepared({"messages": []}, path, named, Settings(), can_say=True)

        assert f"/v1/{route}" in str(chat.value.hint)
        assert example_of(catalog)[0] == f"/v1/{route}"
