"""An answer never comes from the wrong adapter, in whatever order they are asked."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from exporter.llamacpp.toolchain import find_toolchain
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.lora_scales import lora_vector
from runtime.engine.openai_client import Delta, ask
from tests.runtime.conftest import PROMPTS

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

VOICES = {"base": (0.0, 0.0), "pirate": (1.0, 0.0), "liar": (0.0, 1.0)}
ROUNDS = 120


def answer(server: Server, voice: str, prompt: str) -> str:
    settings = {"temperature": 0, "max_tokens": 24, **lora_vector(VOICES[voice])}
    pieces = ask(server, [{"role": "user", "content": prompt}], settings)
    return "".join(piece.text for piece in pieces if isinstance(piece, Delta))


def spec(demo_base, pirate_lora, liar_lora, parallel: int) -> ServerSpec:
    adapters = (pirate_lora, liar_lora)
    return ServerSpec(demo_base, 256, threads=2, parallel=parallel, adapters=adapters)


@pytest.fixture(scope="module")
def expected(demo_base, pirate_lora, liar_lora, toolchain) -> dict[tuple[str, str], str]:
    """Each answer of a server that was never asked in another voice."""
    found = {}
    for voice in VOICES:
        with Server(spec(demo_base, pirate_lora, liar_lora, 1), toolchain) as server:
            found |= {(voice, prompt): answer(server, voice, prompt) for prompt in PROMPTS}
    for prompt in PROMPTS:
        assert len({found[voice, prompt] for voice in VOICES}) == len(VOICES)
    return found


@pytest.mark.parametrize("clients", [1, 4])
def test_no_answer_of_120_comes_from_the_wrong_adapter(
    clients, expected, demo_base, pirate_lora, liar_lora
):
    order = random.Random(5).choices(list(expected), k=ROUNDS)
    with Server(spec(demo_base, pirate_lora, liar_lora, clients), find_toolchain()) as server:
        with ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(lambda asked: answer(server, *asked), order))
    wrong = [
        (asked, got) for asked, got in zip(order, answers, strict=True) if got != expected[asked]
    ]

    assert wrong == []


def test_sixty_adapters_at_once_have_room_in_the_graph(expected, demo_base, pirate_lora, toolchain):
    """Each is the same at a sixtieth of its scale; the room is for those that are applied."""
    many = ServerSpec(demo_base, 256, threads=2, adapters=(pirate_lora,) * 60)
    with Server(many, toolchain) as server:
        scales = {"pirate": [1 / 60] * 60, "base": [0.0] * 60}
        for voice in ("base", "pirate", "base"):
            for prompt in PROMPTS:
                body = {"temperature": 0, "max_tokens": 24, **lora_vector(scales[voice])}
                pieces = ask(server, [{"role": "user", "content": prompt}], body)
                text = "".join(piece.text for piece in pieces if isinstance(piece, Delta))
                assert text == expected[voice, prompt]


def test_every_adapter_is_named_in_every_request():
    assert lora_vector([0.0, 0.5]) == {"lora": [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.5}]}
