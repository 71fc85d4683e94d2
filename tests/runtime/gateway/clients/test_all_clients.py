"""One gateway under the official clients of all three APIs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.official_clients import KEY, anthropic_of, auth, ollama_of, openai_of

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]


def test_all_three_are_answered_by_an_encoder_decoder(others):
    import ollama

    prompt = "the vk e a eat o"
    talk: Any = [{"role": "user", "content": prompt}]
    asked: Any = {"model": "t5", "messages": talk, "max_tokens": 12}
    with openai_of(others) as client:
        chats = client.chat.completions
        expected = chats.create(**asked, temperature=0).choices[0].message.content
        pieces = list(chats.create(**asked, temperature=0, stream=True))
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected != ""
    with anthropic_of(others) as client:
        cool = {"temperature": 0}
        assert client.messages.create(**asked, extra_body=cool).content[0].text == expected
        with client.messages.stream(**asked, extra_body=cool) as stream:
            assert "".join(stream.text_stream) == expected
        assert client.messages.count_tokens(model="t5", messages=talk).input_tokens > 5
    with ollama_of(others, KEY) as client:
        options = {"temperature": 0, "num_predict": 12}
        assert client.chat("t5", talk, options=options).message.content == expected
        assert client.generate("t5", prompt, options=options).response == expected
        said = list(client.chat("t5", talk, options=options, stream=True))
        assert "".join(piece.message.content for piece in said) == expected
        assert (said[-1].done_reason, said[-1].eval_count) == ("length", 12)
        with pytest.raises(ollama.ResponseError) as error:
            client.embed("t5", "x")
        assert error.value.status_code == 501


def test_the_version_is_one_of_ollamas(gateway):
    with gateway.send("GET", "/api/version", headers=auth()) as response:
        assert json.loads(response.read())["version"].count(".") == 2
    with gateway.send("HEAD", "/api/version", headers=auth()) as response:
        assert (response.status, response.read()) == (200, b"")
