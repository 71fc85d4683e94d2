"""The view Chat of a model without a chat template: it continues the text, as in `decant chat`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from runtime.engine.local import RAW_TOKENS
from tests.runtime.gateway.conftest import serving
from tests.runtime.gateway.page.conftest import CHAT, ask, configure, visiting
from tests.support.tiny import make_base

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]


PIECES_FROM = 261
"""The first token of the tiny vocabulary that is neither special nor a byte."""


def make_pieces_likely(weights: Path) -> None:
    """Give the tokens before them logits of zero: of the others, random, one is above."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors["lm_head.weight"][:PIECES_FROM] = 0
    save_file(tensors, weights, {"format": "pt"})


@pytest.fixture(scope="module")
def untold(toolchain, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("untold")
    base = make_base(folder / "base", hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    settings = base / "tokenizer_config.json"
    said = json.loads(settings.read_text())
    del said["chat_template"]
    settings.write_text(json.dumps(said))
    make_pieces_likely(base / "model.safetensors")
    export(ExportRequest((), base, ("F16",), (folder / "untold.gguf",)), toolchain)
    return folder / "untold.gguf"


def test_the_text_is_gone_on_with_up_to_a_limit_and_the_page_says_so(browser, untold, tmp_path):
    with serving(tmp_path, untold) as served, visiting(browser, served.url) as visit:
        ask(visit.open(), "the cat")

        (body,) = visit.asked("/v1/completions")
        assert (body["prompt"], body["max_tokens"]) == ("the cat", RAW_TOKENS)
        assert visit.asked(CHAT) == []
        assert "no chat template" in visit.text(".foot .facts")
        visit["#chat [data-clear]"].click()
        configure(visit, "chat", Temperature="0", Token_limit="3")
        ask(visit, "the dog")
        visit["[data-proceed]"].click()
        visit["[data-again]"].wait_for()
        _, begun, continued = visit.asked("/v1/completions")
        assert begun["prompt"] == "the dog"
        assert continued["prompt"].startswith("the dog")
        assert len(continued["prompt"]) > len("the dog")
        assert "6 tokens" in visit.text(".foot .facts")
