"""Anthropic's official Python client against a real gateway."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.official_clients import LONG, TALK, each_voice

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]


@each_voice
def test_anthropic_gets_messages(anthropic_client, expected, model):
    asked: Any = {
        "model": model, "messages": TALK, "max_tokens": 24, "extra_body": {"temperature": 0},
    }  # fmt: skip
    whole = anthropic_client.messages.create(**asked)
    with anthropic_client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()

    assert [block.text for block in whole.content] == [expected[model]]
    assert whole.stop_reason == final.stop_reason == "end_turn"
    assert text == final.content[0].text == expected[model]
    assert final.usage.output_tokens == whole.usage.output_tokens > 3


def test_anthropic_counts_tokens(anthropic_client):
    count = anthropic_client.messages.count_tokens(model="base:pirate", messages=TALK)
    used = anthropic_client.messages.create(model="base:pirate", messages=TALK, max_tokens=1).usage

    assert count.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0) > 5


def test_anthropic_raises_what_is_wrong(anthropic_client):
    import anthropic

    messages = anthropic_client.messages
    with pytest.raises(anthropic.NotFoundError) as missing:
        messages.create(model="nobody", messages=TALK, max_tokens=5)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        messages.create(model="base", messages=TALK, max_tokens=5, extra_body={"max_tokens": "x"})
    with pytest.raises(anthropic.BadRequestError, match="context"):
        messages.create(model="base", messages=LONG, max_tokens=5)
    with pytest.raises(anthropic.AuthenticationError):
        anthropic_client.with_options(api_key="wrong").messages.count_tokens(
            model="base", messages=TALK
        )

    assert missing.value.body["error"]["type"] == "not_found_error"
