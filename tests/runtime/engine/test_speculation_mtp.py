"""A model's own layers for multi-token prediction (MTP) guess: the answers stay the same."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.formats.gguf_lora import LoraRequest, export_lora
from runtime.engine.adapters import Adapter
from runtime.engine.local import LocalEngine
from runtime.engine.lora_scales import lora_vector
from runtime.engine.memory_fit import FitOptions
from runtime.engine.openai_client import Delta, Stopped, ask_json
from runtime.engine.opened_model import open_model
from runtime.engine.selection import AdapterSelection
from runtime.engine.speculation import AUTO, OFF, Speculation
from tests.runtime.gateway.conftest import serving
from tests.support.near_ties import gap
from tests.support.predicting_models import make_predicting
from tests.support.tiny import make_adapter

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.lasting,
    pytest.mark.filterwarnings("ignore"),
]
NAMES = ("glm4_moe", "qwen3_5")
"""One whose state can be cut back, and one with recurrent layers, whose state is copied."""
WEIGHT = 0.03
"""With it about every second guess is right."""
VOICES = (0.0, 1.0)
CLOSE = 0.01  # of a logit: the weights have 32 bits
CLIENTS = 4
PROMPTS = [[5 + (place * 37 + number * 61) % 290 for place in range(6)] for number in range(8)]
"""Tokens, all different."""


@pytest.fixture(scope="module", params=NAMES)
def model(request, toolchain, tmp_path_factory) -> Any:
    """A model that predicts, with an adapter."""
    folder = tmp_path_factory.mktemp(request.param)
    base = make_predicting(folder / "base", request.param, weight=WEIGHT)
    path, lora = folder / f"{request.param}-F32.gguf", folder / "small.gguf"
    export(ExportRequest((), base, ("F32",), (path,)), toolchain)
    targets = {"target_modules": ["q_proj", "o_proj"]}
    export_lora(LoraRequest(make_adapter(folder / "a", base, **targets), base, lora), toolchain)
    return open_model(path, (Adapter("small", lora, 1.0),))


@pytest.fixture(scope="module")
def engines(model) -> Iterator[dict[str, LocalEngine]]:
    """Without guesses, for one client; with guesses, for several."""
    found = {
        "off": LocalEngine(model, FitOptions(128, 1), speculation=OFF),
        "mtp": LocalEngine(
            model, FitOptions(128, 1, parallel=CLIENTS), speculation=Speculation("mtp")
        ),
    }
    yield found
    for engine in found.values():
        engine.stop()


def asked(engine: LocalEngine, prompt: list[int], scale: float) -> dict[str, Any]:
    """A greedy answer that does not end by itself."""
    body = {
        "prompt": prompt, "n_predict": 48, "temperature": 0, "ignore_eos": True,
        "return_tokens": True, **lora_vector([scale]),
    }  # fmt: skip
    return ask_json(engine.start(), "/completion", body)


def test_answers_of_several_clients_are_the_same_as_without(engines):
    requests = [(prompt, scale) for prompt in PROMPTS for scale in VOICES]
    right = [asked(engines["off"], *one)["tokens"] for one in requests]
    engines["mtp"].start()
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(lambda one: asked(engines["mtp"], *one), requests))

    gaps = [
        gap(engines["off"].start(), prompt, mine, other["tokens"], lora_vector([scale]))
        for (prompt, scale), mine, other in zip(requests, right, found, strict=True)
    ]
    assert max(gaps) < CLOSE
    assert all(mine != other for mine, other in zip(right[::2], right[1::2], strict=True))
    for place in range(len(VOICES)):  # partly right, with each voice
        timings = [one["timings"] for one in found[place :: len(VOICES)]]
        guessed, accepted = (
            sum(times.get(name, 0) for times in timings) for name in ("draft_n", "draft_n_accepted")
        )
        assert 0 < accepted < guessed


def test_a_chat_counts_right_guesses(engines):
    talk = [{"role": "user", "content": "the cat"}]
    settings = {"temperature": 0, "max_tokens": 32, "ignore_eos": True}
    told = {}
    for name, engine in engines.items():
        *pieces, end = engine.answer(talk, settings, AdapterSelection("small"))
        assert isinstance(end, Stopped)
        told[name] = "".join(piece.text for piece in pieces if isinstance(piece, Delta))
        assert (end.accepted > 0) == (name == "mtp")

    assert told["mtp"] == told["off"]


def test_auto_uses_them_where_a_state_can_be_cut_back(model):
    is_recurrent = model.header.architecture == "qwen35"

    assert AUTO.fitted(model).kind == ("off" if is_recurrent else "mtp")


def test_the_server_uses_them(model, tmp_path):
    lora = f"small={model.adapters[0].path}"
    name = model.header.path.stem
    body = {"messages": [{"role": "user", "content": "the cat"}], "temperature": 0}
    told = {}
    for spec in ("off", "mtp"):
        arguments = (model.header.path, "--adapter", lora, "--spec", spec, "--ctx", 128)
        with serving(tmp_path, *arguments, "--threads", 1) as served:
            served.wait_until_ready()
            wanted = body | {"model": f"{name}:small", "max_tokens": 32, "ignore_eos": True}
            status, told[spec] = served.ask("/v1/chat/completions", wanted)
            assert status == 200, told[spec]

    texts = [told[spec]["choices"][0]["message"]["content"] for spec in ("off", "mtp")]
    assert texts[0] == texts[1] != ""
    assert told["mtp"]["timings"]["draft_n_accepted"] > 0


def test_two_processes_of_chat_say_the_same(model, decant, tmp_path):
    """One with guesses, one without."""
    lora, path = model.adapters[0].path, Path(model.header.path)
    arguments = ("chat", path, "--adapter", lora, "-p", "the cat", "--temperature", 0, "-n", 24)
    off, mtp = (decant(*arguments, "--spec", spec) for spec in ("off", "mtp"))

    assert (off.returncode, mtp.returncode) == (0, 0), mtp.stderr
    assert off.stdout == mtp.stdout != ""
