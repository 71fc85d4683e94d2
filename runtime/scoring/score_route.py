"""How the gateway and evaluations ask the scoring engine."""

from __future__ import annotations

SCORE = "/score"
LIKELIHOODS = "/likelihoods"
LIKELIHOOD_BATCH = "/likelihoods/batch"
START = "logprob_start_len"
"""The field with the place of the first token whose log-probability is wanted, as SGLang has it."""
TOP_MAX = 100
"""The largest `logprobs` of a request; OpenAI's limit is 5."""
