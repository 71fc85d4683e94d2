"""How the gateway asks the scoring engine."""

from __future__ import annotations

SCORE = "/score"
TOP_MAX = 100
"""The most of `logprobs`: OpenAI's own is 5."""
