"""The outcome of an item with one model: its answer, and how likely it finds the right one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """How likely a model finds one text after an item's question."""

    logprob: float
    """The sum over its tokens, in nats."""
    tokens: int
    greedy: tuple[int, ...] = ()
    """The likeliest token at the place of each of its tokens."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one item with one model; parts that no metric asks for are absent."""

    answer: str | None = None
    """The generated answer, without thoughts."""
    finish: str = ""
    """OpenAI's finish reason: stop, or length when the token limit was reached."""
    prompt_tokens: int = 0
    tokens: int = 0
    """Number of generated tokens."""
    seconds: float = 0.0
    """From the request to the answer's end."""
    first_token_s: float = 0.0
    """Time for the prompt, in seconds; 0 if the server does not say."""
    tokens_per_second: float = 0.0
    """The engine's own figure; 0 if the server does not say."""
    reference: Likelihoods | None = None
    """The likelihoods of the first reference."""
    rejected: Likelihoods | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    """Each label's log-probability after the question, in nats, summed over its tokens."""
    divergences: tuple[float, ...] = ()
    """At each token of the first reference, the Kullback-Leibler divergence of the model's
    distribution from that of the model compared with, in nats."""
    refusal: str = ""
    """Why there is no outcome, such as a prompt that exceeds the context; empty if there is one."""

    def as_json(self) -> dict[str, Any]:
        """The outcome as a JSON object."""
        return asdict(self)


def outcome_of(fields: Mapping[str, Any]) -> Outcome:
    """The outcome that `as_json` gave these fields for."""
    named = dict(fields)
    for name in ("reference", "rejected"):
        if (found := named.get(name)) is not None:
            named[name] = Likelihoods(found["logprob"], found["tokens"], tuple(found["greedy"]))
    named["divergences"] = tuple(named.get("divergences", ()))
    return Outcome(**named)
