"""How the gateway and evaluations ask the scoring engine."""

from __future__ import annotations

SCORE = "/score"
LIKELIHOODS = "/likelihoods"
TOP_MAX = 100
"""The most of `logprobs`: OpenAI's own is 5."""
