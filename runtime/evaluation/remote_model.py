"""A model of a remote server, as an evaluation asks it: for answers only."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

REQUESTS = 4
"""Requests at once."""
BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Waits before a busy server is asked again, if it does not say how long."""
LONGEST_S = 120.0  # that a server may ask to be waited for


@dataclass(frozen=True)
class RemoteModel:
    """A server's model. Implements EvaluatedModel."""

    name: str
    remote: Remote
    model: str
    """Its name there."""

    @property
    def identity(self) -> dict[str, Any]:
        """The address and the name: a server does not say which weights it holds."""
        return {"url": str(self.remote), "model": self.model}

    @property
    def requests(self) -> int:
        """Requests that are sent at once."""
        return REQUESTS

    def why_no_likelihoods(self) -> str:
        """The reason why it gives no likelihoods, for the reader."""
        return "servers are asked for answers only"

    def answer(self, messages: Sequence[Message], settings: AnswerSettings) -> Outcome:
        """Generate an answer. Raises EngineError; a prompt that is too long is a refusal."""
        body = {"model": self.model, "messages": list(messages), **settings.as_request()}
        try:
            return outcome_from(self.asked(body))
        except ContextFullError as error:
            return Outcome(refusal=too_long(error.prompt, error.context))

    def asked(self, body: Mapping[str, object]) -> dict[str, Any]:
        """The server's answer; a busy server is asked again. Raises EngineError."""
        attempt = 0
        while True:
            with self.remote.post(CHAT, body) as response:
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
        """Return the reason why there are none."""
        del messages, texts
        return self.why_no_likelihoods()

    def facts(self) -> dict[str, Any]:
        """The fields of ModelFacts that are known."""
        return {"source": f"{self.remote} {self.model}"}


def named_wait_s(header: str | None) -> float:
    """The seconds of a Retry-After header, LONGEST_S at most; 0 without a number."""
    try:
        return min(float(header or 0), LONGEST_S)
    except ValueError:
        return 0.0
