"""The official Python clients of OpenAI, Anthropic and Ollama, and their requests."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from tests.runtime.conftest import PROMPTS
from tests.runtime.gateway.conftest import Served

if TYPE_CHECKING:
    import anthropic
    import ollama
    import openai

KEY = "correct-horse-battery-staple"
VOICES = {
    "base": (0.0, 0.0), "base:pirate": (1.0, 0.0), "base:liar": (0.0, 1.0),
    "base:pirate@0.25": (0.25, 0.0),
}  # fmt: skip
PROMPT = PROMPTS[0]
TALK: Any = [{"role": "user", "content": PROMPT}]  # each client has another type for it
LONG: Any = [{"role": "user", "content": "word " * 3000}]
SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["age"],
    "additionalProperties": False,
}
WEATHER = {
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
    },
}
TEMPLATE = """\
{%- if tools %}<|system|>To call a function, say {"name": its name, "parameters": its arguments}.
{%- for tool in tools %}
{{ tool | tojson }}{% endfor %}{{ eos_token }}{% endif -%}
{%- for message in messages %}
{%- if message.role == "tool" %}<|user|>{{ message.content }}{{ eos_token }}
{%- elif message.tool_calls %}<|assistant|>
{%- for call in message.tool_calls -%}
{"name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}
{%- endfor %}{{ eos_token }}
{%- else %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
GREEDY = {"temperature": 0, "max_tokens": 24}
OPTIONS = {"temperature": 0, "num_predict": 24}
each_voice = pytest.mark.parametrize("model", VOICES)


def calling(others: Served) -> Any:
    """A request for a tool call; a logit bias makes the model begin one."""
    _, brace = others.ask("/tokenize", {"model": "tooled", "content": "{"})
    return {
        "model": "tooled", "messages": TALK, "temperature": 0, "max_tokens": 100,
        "tools": [{"type": "function", "function": WEATHER}], "tool_choice": "required",
        "parallel_tool_calls": False, "logit_bias": {str(brace["tokens"][-1]): 50},
    }  # fmt: skip


def openai_of(served: Served) -> openai.OpenAI:
    import openai

    return openai.OpenAI(
        base_url=f"{served.url}/v1",
        api_key=KEY,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


def anthropic_of(served: Served) -> anthropic.Anthropic:
    import anthropic

    return anthropic.Anthropic(
        base_url=served.url,
        api_key=KEY,
        max_retries=0,
        http_client=anthropic.DefaultHttpxClient(trust_env=False),
    )


def ollama_of(gateway: Served, key: str) -> ollama.Client:
    import ollama

    return ollama.Client(gateway.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False)


def alike(one, other):
    """Whether two vectors are of one text and model, computed alone or in a batch.

    4-bit weights are multiplied with 8-bit activations, so that the order of a batch's sums
    changes the last digits.
    """
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.hypot(*one) / math.hypot(*other) > 0.9999


def auth() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}"}
