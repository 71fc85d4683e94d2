"""Gateways for the official clients, and each of them connected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.lora_scales import lora_vector
from runtime.engine.openai_client import Delta, ask
from tests.runtime.gateway.conftest import Served, serving
from tests.support.architectures import make_architecture
from tests.support.official_clients import (
    GREEDY,
    KEY,
    TALK,
    TEMPLATE,
    VOICES,
    anthropic_of,
    calling,
    ollama_of,
    openai_of,
)
from tests.support.raw import edit_json
from tests.support.tiny import make_tokenizer
from tests.support.tiny_t5 import make_t5

if TYPE_CHECKING:
    import anthropic
    import ollama
    import openai


@pytest.fixture(scope="session")
def gateway(voices, tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "key").write_text(KEY)
    (folder / "key").chmod(0o600)
    with serving(folder, *voices, "--parallel", "2", "--api-key-file", folder / "key") as found:
        found.wait_until_ready()
        yield found


@pytest.fixture(scope="session")
def expected(demo_base, pirate_lora, liar_lora, toolchain) -> dict[str, str]:
    """What the engine itself answers to PROMPT in each voice, all of them different."""
    spec = ServerSpec(demo_base, 512, threads=1, adapters=(pirate_lora, liar_lora))
    found = {}
    with Server(spec, toolchain) as child:
        for model, voice in VOICES.items():
            pieces = ask(child, TALK, {**GREEDY, **lora_vector(voice)})
            found[model] = "".join(piece.text for piece in pieces if isinstance(piece, Delta))
    assert len({found[name] for name in ("base", "base:pirate", "base:liar")}) == 3
    return found


@pytest.fixture(scope="session")
def others(demo_models, toolchain, tmp_path_factory) -> Iterator[Served]:
    """A gateway over the demo's base with a template that knows of tools, a T5, and one that sees.

    The last one's projector is found beside it.
    """
    folder = tmp_path_factory.mktemp("others")
    base = shutil.copytree(demo_models.base, folder / "base")
    edit_json(base / "tokenizer_config.json", chat_template=TEMPLATE)
    paths = [folder / name for name in ("tooled-Q8_0.gguf", "t5-F32.gguf", "seeing-F16.gguf")]
    export(ExportRequest((), base, ("Q8_0",), tuple(paths[:1])), toolchain)
    export(ExportRequest((), make_t5(folder / "t5"), ("F32",), tuple(paths[1:2])), toolchain)
    seeing = make_architecture("gemma3_vlm", folder / "seeing")
    make_tokenizer(seeing)
    pictures = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (seeing / "preprocessor_config.json").write_text(json.dumps(pictures))
    export(ExportRequest((), seeing, ("F16",), tuple(paths[2:])), toolchain)
    with serving(folder, *paths) as found:
        yield found


@pytest.fixture(scope="session")
def called_in_pieces(others) -> list[Any]:
    with openai_of(others) as client:
        return list(client.chat.completions.create(**calling(others), stream=True))


@pytest.fixture(scope="session")
def openai_client(gateway) -> Iterator[openai.OpenAI]:
    with openai_of(gateway) as client:
        yield client


@pytest.fixture(scope="session")
def anthropic_client(gateway) -> Iterator[anthropic.Anthropic]:
    with anthropic_of(gateway) as client:
        yield client


@pytest.fixture(scope="session")
def ollama_client(gateway) -> Iterator[ollama.Client]:
    with ollama_of(gateway, KEY) as client:
        yield client
