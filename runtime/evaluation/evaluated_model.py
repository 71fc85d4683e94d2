"""The interface of an evaluation to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from runtime.evaluation.item import Message
from runtime.evaluation.outcome import Likelihoods, Outcome

MAX_TOKENS = 256
"""The default limit of an answer."""


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """The settings of all answers; answers are greedy."""

    max_tokens: int = MAX_TOKENS
    seed: int = 0
    """Greedy answers ignore it; a remote server may not be greedy in ties."""
    stop: tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = None
    """The JSON schema of the answers; the engine generates nothing else."""
    extra: dict[str, Any] = field(default_factory=dict)

    def as_request(self) -> dict[str, object]:
        """The fields of OpenAI's request."""
        found: dict[str, object] = {
            "temperature": 0,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            **self.extra,
        }
        if self.stop:
            found["stop"] = list(self.stop)
        if self.json_schema is not None:
            schema = {"name": "answer", "schema": self.json_schema}
            found["response_format"] = {"type": "json_schema", "json_schema": schema}
        return found


class EvaluatedModel(Protocol):
    """A model, or a base with one adapter; several threads may use it at once."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> dict[str, Any]:
        """Everything its outcomes depend on; equal identities give equal outcomes."""
        ...

    @property
    def requests(self) -> int:
        """The number of requests that keep it busy."""
        ...

    def why_no_likelihoods(self) -> str:
        """The reason why it gives no likelihoods, for the reader; empty if it does."""
        ...

    def answer(self, messages: Sequence[Message], settings: AnswerSettings) -> Outcome:
        """Generate an answer. Raises EngineError; a prompt that is too long is a refusal."""
        ...

    def likelihoods(
        self, messages: Sequence[Message], texts: Sequence[str]
    ) -> list[Likelihoods] | str:
        """How likely each text is as the answer, or the refusal. Raises EngineError."""
        ...

    def facts(self) -> dict[str, Any]:
        """The fields of ModelFacts that the model itself knows."""
        ...


@runtime_checkable
class HasDistributions(EvaluatedModel, Protocol):
    """A model whose whole distributions can be compared with another's."""

    def keep(
        self, messages: Sequence[Message], text: str, number: int
    ) -> tuple[Likelihoods, bool] | str:
        """The text's likelihoods, and whether its distributions are kept under the number.

        Returns the refusal of a text that is too long. Raises EngineError.
        """
        ...

    def divergences(
        self, messages: Sequence[Message], text: str, number: int
    ) -> tuple[Likelihoods, tuple[float, ...]] | str:
        """The text's likelihoods, and its divergences from what is kept under the number.

        They are empty if the two models tokenize the text differently. Returns the refusal of a
        text that is too long. Raises EngineError.
        """
        ...
