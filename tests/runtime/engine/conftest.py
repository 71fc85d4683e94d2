"""Small models with several tokenizers, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from tests.support.template_models import CONTEXT, spell
from tests.support.tiny import make_base


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> dict[str, Path]:
    """The same model with sentencepiece's file, and as transformers saves it today."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("bases")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    made = {
        name: make_base(folder / name, max_position_embeddings=CONTEXT, **small)
        for name in ("sentencepiece", "saved", "letters")
    }
    AutoTokenizer.from_pretrained(made["saved"]).save_pretrained(made["saved"])
    (made["saved"] / "tokenizer.model").unlink()
    spell(made["letters"])
    return made


@pytest.fixture(scope="session")
def models(bases, toolchain, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for name, base in bases.items():
        export(ExportRequest((), base, ("F16",), (folder / f"{name}.gguf",)), toolchain)
    return {name: folder / f"{name}.gguf" for name in bases}
