"""A model of a remote server, as an evaluation asks it.

Every server gives answers; one that repeats prompts with log-probabilities gives likelihoods, too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from typing import Any

from exporter.core.errors import ContextFullError
from runtime.engine.local import CHAT
from runtime.engine.openai_client import read_object, refused
from runtime.engine.remote import Remote
from runtime.evaluation.evaluated_model import AnswerSettings
from runtime.evaluation.item import Message
from runtime.evaluation.local_model import outcome_from, too_long
from runtime.evaluation.outcome import Likelihoods, Outcome
from runtime.evaluation.prompt_likelihoods import PromptScorer, prompt_scorer

REQUESTS = 4
"""Requests at once."""
BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Waits before a busy server is asked again, if it does not say how long."""
LONGEST_S = 120.0  # the longest wait that a server may ask for


@dataclass(frozen=True)
class RemoteModel:
    """A server's model. Implements EvaluatedModel."""

    name: str
    remote: Remote
    model: str
    """Its name there."""
    has_questions: bool = True
    """Whether the data has conversations, which the server must render for their likelihoods."""

    @property
    def identity(self) -> dict[str, Any]:
        """The address and the name: a server does not say which weights it holds."""
        return {"url": str(self.remote), "model": self.model}

    @property
    def requests(self) -> int:
        """Requests that are sent at once."""
        return REQUESTS

    @cached_property
    def scorer(self) -> PromptScorer | str:
        """The scorer, or the reason why there is none; the first access asks the server."""
        return prompt_scorer(self.ask, self.model, has_questions=self.has_questions)

    def why_no_likelihoods(self) -> str:
        """The reason why it gives no likelihoods, for the reader; empty if it does."""
        return self.scorer if isinstance(self.scorer, str) else ""

    def answer(self, messages: Sequence[Message], settings: AnswerSettings) -> Outcome:
        """Generate an answer. Raises EngineError; a prompt that is too long is a refusal."""
        body = {"model": self.model, "messages": list(messages), **settings.as_request()}
        try:
            return outcome_from(self.ask(CHAT, body))
        except ContextFullError as error:
            return Outcome(refusal=too_long(error.prompt, error.context))

    def ask(self, route: str, body: Mapping[str, object]) -> dict[str, Any]:
        """The server's answer; a busy server is asked again. Raises EngineError."""
        attempt = 0
        while True:
            with self.remote.post(route, body) as response:
                if response.status == HTTPStatus.OK:
                    return read_object(response)
                if response.status not in BUSY or attempt == len(WAITS_S):
                    raise refused(response)
                named_s = named_wait_s(response.getheader("Retry-After"))
            time.sleep(named_s or WAITS_S[attempt])
            attempt += 1

    def likelihoods(
        self, messages: Sequence[Message], texts: Sequence[str]
    ) -> list[Likelihoods] | str:
        """How likely each text is as the answer, or the refusal. Raises EngineError.

        The likeliest tokens are not given: a server names tokens, and has no numbers for them.
        """
        scorer = self.scorer
        if isinstance(scorer, str):
            return scorer
        try:
            prompt = scorer.rendered(messages) if messages else ""
            return scorer.likelihoods(prompt, texts)
        except ContextFullError as error:
            return too_long(error.prompt, error.context)

    def facts(self) -> dict[str, Any]:
        """The fields of ModelFacts that are known."""
        return {"source": f"{self.remote} {self.model}"}


def named_wait_s(header: str | None) -> float:
    """The seconds of a Retry-After header, LONGEST_S at most; 0 without a number."""
    try:
        return min(float(header or 0), LONGEST_S)
    except ValueError:
        return 0.0
