"""How the gateway and evaluations ask the scoring engine."""

from __future__ import annotations

SCORE = "/score"
LIKELIHOODS = "/likelihoods"
LIKELIHOOD_BATCH = "/likelihoods/batch"
TOP_MAX = 100
"""The most of `logprobs`: OpenAI's own is 5."""
