"""Whether two greedy texts part where two tokens are nearly as likely.

llama.cpp's sums depend on how many tokens are computed at once, in their last bits: where two
tokens are that close, another batch size alone changes the choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.engine.model_server import ModelServer
from runtime.engine.openai_client import ask_json

CLOSE = 0.25
"""A difference of two logits that 4-bit weights and 8-bit activations may turn."""
SHOWN = 8  # likeliest tokens that are looked at
ALL_SHOWN = 1 << 16  # the same where a grammar forbids most of them


def written(server: ModelServer, prompt: Sequence[int], body: Mapping[str, Any]) -> list[int]:
    """The tokens of a greedy text after a prompt of tokens."""
    asked = {**body, "prompt": list(prompt), "temperature": 0, "return_tokens": True}
    return list(ask_json(server, "/completion", asked)["tokens"])


def gap(
    server: ModelServer,
    prompt: Sequence[int],
    one: Sequence[int],
    other: Sequence[int],
    body: Mapping[str, Any],
    *,
    shown: int = SHOWN,
) -> float:
    """The difference of the two tokens' logits where the texts part; 0 for equal texts.

    shown: how many tokens are looked at. Infinite if one of the two is not among them, or one text
    is the other's begin.
    """
    pairs = enumerate(zip(one, other, strict=False))
    place = next((n for n, (mine, his) in pairs if mine != his), None)
    if place is None:
        return 0.0 if len(one) == len(other) else float("inf")
    asked = {**body, "prompt": [*prompt, *one[:place]], "n_predict": 1, "n_probs": shown}
    found = ask_json(server, "/completion", {**asked, "temperature": 0})
    told = found["completion_probabilities"][0]["top_logprobs"]
    logprobs = {token["id"]: token["logprob"] for token in told}
    if not {one[place], other[place]} <= logprobs.keys():
        return float("inf")
    return abs(float(logprobs[one[place]] - logprobs[other[place]]))


def tokens_of(server: ModelServer, talk: Sequence[Mapping[str, str]]) -> list[int]:
    """The tokens of a conversation's prompt."""
    text = ask_json(server, "/apply-template", {"messages": list(talk)})["prompt"]
    asked = {"content": text, "add_special": True, "parse_special": True}
    return list(ask_json(server, "/tokenize", asked)["tokens"])
