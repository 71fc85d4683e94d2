"""Bases for GGUF adapters, and a converter that leaves vocabularies aside."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from exporter.converter_import import imported
from tests.architectures import make_architecture
from tests.tiny import make_tokenizer

AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"norm_topk_prob": True},
    "gemma3": {"query_pre_attn_scalar": 16},  # the width of a head
}
"""Settings that llama.cpp takes for granted, and transformers' defaults do not have."""


@pytest.fixture
def vocabularies_left_out(toolchain, monkeypatch):
    """The converter knows a byte-pair tokenizer only by the hash of a published one."""
    with imported(toolchain):
        from conversion import load_all_models
        from conversion.base import TextModel

        def leave_out(self: Any) -> None:
            self.gguf_writer.add_tokenizer_model("no_vocab")
            self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

        load_all_models()
        for module in [m for name, m in sys.modules.items() if name.startswith("conversion.")]:
            for kind in vars(module).values():
                if isinstance(kind, type) and issubclass(kind, TextModel):
                    monkeypatch.setattr(kind, "set_vocab", leave_out)
        yield


@pytest.fixture(scope="session")
def lora_base_of(tmp_path_factory):
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = make_architecture(
                name, tmp_path_factory.mktemp(name) / "base", dtype="float32"
            )
            make_tokenizer(made[name])
            (made[name] / "tokenizer.json").write_text("{}")
            config = made[name] / "config.json"
            settings = json.loads(config.read_text()) | AS_PUBLISHED.get(name, {})
            config.write_text(json.dumps(settings))
        return made[name]

    return make
