"""A model of a remote server, as an evaluation asks it: for answers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exporter.core.errors import ContextFullError
from runtime.engine.local import CHAT
from runtime.engine.openai_client import ask_json
from runtime.engine.remote import Remote
from runtime.evaluation.evaluated_model import AnswerSettings
from runtime.evaluation.item import Message
from runtime.evaluation.local_model import outcome_from, too_long
from runtime.evaluation.outcome import Likelihoods, Outcome

REQUESTS = 4
"""Requests at once."""


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
            return outcome_from(ask_json(self.remote, CHAT, body))
        except ContextFullError as error:
            return Outcome(refusal=too_long(error.prompt, error.context))

    def likelihoods(
        self, messages: Sequence[Message], texts: Sequence[str]
    ) -> list[Likelihoods] | str:
        """Return the reason why there are none."""
        del messages, texts
        return self.why_no_likelihoods()

    def facts(self) -> dict[str, Any]:
        """The fields of ModelFacts that are known."""
        return {"source": f"{self.remote} {self.model}"}
