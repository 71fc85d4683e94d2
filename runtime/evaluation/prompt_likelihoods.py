"""Likelihoods from a server whose completions repeat the prompt with its log-probabilities.

OpenAI's `/v1/completions` did so with `echo` and `logprobs`; decant's and vLLM's do. The number of
characters before a text shows at which token it begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.core.errors import EngineError
from runtime.engine.openai_client import listed, mapped
from runtime.evaluation.item import Message
from runtime.evaluation.local_model import RENDER
from runtime.evaluation.outcome import Likelihoods

COMPLETIONS = "/v1/completions"
LIMITS = (0, 1)
"""Tokens to generate: some servers refuse 0, and what they generate is left out."""
BEFORE, AFTER = "The sky is", " blue today."
"""The probe: a prompt and a text after it."""
Post = Callable[[str, Mapping[str, object]], dict[str, Any]]
"""Posts a body to a route. Raises EngineError."""


@dataclass(frozen=True, slots=True)
class PromptScorer:
    """Asks a server for the likelihoods of texts after prompts."""

    post: Post
    model: str
    limit: int = 0
    """Tokens that the server generates for each request."""

    def likelihoods(self, prompt: str, texts: Sequence[str]) -> list[Likelihoods]:
        """How likely each text is after the prompt. Raises EngineError."""
        body = {
            "model": self.model,
            "prompt": [prompt + text for text in texts],
            "echo": True,
            "logprobs": 1,
            "max_tokens": self.limit,
            "temperature": 0,
        }
        choices = listed(self.post(COMPLETIONS, body).get("choices"))
        if len(choices) != len(texts):
            raise unusable(f"it gave {len(choices)} answers to {len(texts)} prompts")
        choices.sort(key=lambda choice: int(choice.get("index") or 0))
        return [
            likelihood_in(choice, prompt, text) for choice, text in zip(choices, texts, strict=True)
        ]

    def rendered(self, messages: Sequence[Message]) -> str:
        """The prompt that the server makes of a conversation. Raises EngineError."""
        found = self.post(RENDER, {"model": self.model, "messages": list(messages)}).get("prompt")
        if not isinstance(found, str):
            raise unusable(f"{RENDER} gave no prompt")
        return found


def likelihood_in(choice: Mapping[str, Any], prompt: str, text: str) -> Likelihoods:
    """The likelihood of the text in an answer that repeats the prompt and the text.

    Raises EngineError for an answer without the log-probabilities of the prompt.
    """
    found = mapped(choice.get("logprobs"))
    names, values, offsets = (
        found.get(name) for name in ("tokens", "token_logprobs", "text_offset")
    )
    if not isinstance(names, list) or not isinstance(values, list) or not isinstance(offsets, list):
        raise unusable("its completions do not repeat the prompt with log-probabilities")
    if not names or not len(names) == len(values) == len(offsets):
        raise unusable("its lists of tokens and log-probabilities have unequal lengths")
    shift = 0
    if len(offsets) > 1 and not prompt.startswith(str(names[0])):
        shift = offsets[1] - offsets[0]  # some servers count the token that begins every text
    begin, end = (offsets[0] + shift + len(part) for part in (prompt, prompt + text))
    places = [place for place, offset in enumerate(offsets) if begin <= offset < end]
    if not places:  # one token holds the text with the prompt's last characters
        places = [max(place for place, offset in enumerate(offsets) if offset <= begin)]
    if not prompt and values[places[0]] is None:
        places = places[1:]  # the first token follows nothing
    chosen = [values[place] for place in places]
    if not chosen or not all(type(value) in (int, float) for value in chosen):
        raise unusable("it gave no log-probabilities for the tokens of the prompt")
    return Likelihoods(math.fsum(chosen), len(chosen))


def unusable(why: str) -> EngineError:
    return EngineError(f"the server gives no likelihoods: {why}", hint="leave those metrics out")


def prompt_scorer(post: Post, model: str, *, has_questions: bool) -> PromptScorer | str:
    """The scorer of a server's model, or the reason why it has none; it asks the server.

    has_questions: whether conversations are to be rendered, too.
    """
    reason = ""
    for limit in LIMITS:
        scorer = PromptScorer(post, model, limit)
        try:
            (found,) = scorer.likelihoods(BEFORE, [AFTER])
        except EngineError as error:
            reason = reason or error.message
            continue
        if not 1 <= found.tokens <= len(AFTER) or not found.logprob < 0:
            return "its completions with `echo` do not say where tokens begin"
        if not has_questions:
            return scorer
        try:
            scorer.rendered([{"role": "user", "content": BEFORE}])
        except EngineError:
            return f"it does not render conversations as prompts ({RENDER})"
        return scorer
    return reason
