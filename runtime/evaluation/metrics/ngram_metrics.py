"""BLEU and chrF by sacrebleu, ROUGE-L by rouge-score.

The libraries count; the figure of summed counts is computed here, for 10,000 resamples at once.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from runtime.evaluation.item import Item
from runtime.evaluation.metric import Metric
from runtime.evaluation.metrics.figures import mean_metric, row
from runtime.evaluation.metrics.libraries import library, without
from runtime.evaluation.metrics.text_tokens import SPACELESS, alphanumeric_tokens
from runtime.evaluation.outcome import Outcome

if TYPE_CHECKING:
    from runtime.evaluation.metric import Floats

MOST_CHARACTERS = 100_000  # of a text in BLEU and chrF, which take a second for 1 MB
MOST_WORDS = 2_000  # of a text in ROUGE-L, whose time grows with the square; these take a second
ORDERS = 4  # BLEU's: n-grams of 1 to 4 words
BETA = 2.0  # chrF2: recall counts twice as much as precision
HAN = re.compile("[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
OTHER_SPACELESS = re.compile(f"(?![\u3005-\u3007\u3400-\u9fff\uf900-\ufaff])[{SPACELESS}]")


@cache
def _bleu(tokenizer: str) -> Any:  # sacrebleu's BLEU
    return library("sacrebleu.metrics").BLEU(tokenize=tokenizer, effective_order=True)


@cache
def _chrf() -> Any:  # sacrebleu's CHRF
    return library("sacrebleu.metrics").CHRF()


@cache
def _rouge() -> Any:  # rouge-score's RougeScorer
    with without("scipy", "sklearn"):
        scorer = library("rouge_score.rouge_scorer").RougeScorer
    return scorer(["rougeL"], tokenizer=_Words())


class _Words:
    """A tokenizer for rouge-score, whose own drops all letters but a to z."""

    def tokenize(self, text: str) -> list[str]:
        return alphanumeric_tokens(text)[:MOST_WORDS]


def bleu_counts(item: Item, outcome: Outcome) -> Floats | None:
    """BLEU's counts of an item: its length, the reference's, matches and n-grams; shape (10,).

    sacrebleu's tokenizer is `13a`; `zh` for references with Chinese characters, and `char` for
    those in Japanese, Thai and other scripts without spaces. Only a text's first 100,000
    characters count.
    """
    if outcome.answer is None or not item.references:
        return None
    references = [reference[:MOST_CHARACTERS] for reference in item.references]
    found = _bleu(_tokenizer(references)).sentence_score(
        outcome.answer[:MOST_CHARACTERS], references
    )
    return row(found.sys_len, found.ref_len, *found.counts, *found.totals)


def _tokenizer(references: list[str]) -> str:
    text = "".join(references)
    if OTHER_SPACELESS.search(text):
        return "char"
    return "zh" if HAN.search(text) else "13a"


def bleu_of(sums: Floats) -> Floats:
    """BLEU, 0 to 100, with sacrebleu's exponential smoothing: shape (..., 10) to (...)."""
    import numpy as np

    ours, theirs = sums[..., 0], sums[..., 1]
    correct, total = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    has_all = (total > 0).all(-1) & (correct > 0).any(-1)
    # the n-th order without a match counts as 1 / 2^n of one
    missed = np.cumsum(correct == 0, -1)
    matches = np.where(correct > 0, correct, 0.5**missed)
    logs = np.log(matches / np.maximum(total, 1)).mean(-1)
    penalty = np.minimum(1 - theirs / np.maximum(ours, 1), 0)
    return np.where(has_all, 100 * np.exp(logs + penalty), 0.0)


def chrf_counts(item: Item, outcome: Outcome) -> Floats | None:
    """The counts of chrF for an item: n-grams, the reference's, matches, by order; shape (18,).

    Only the reference that gives the largest chrF counts, and only a text's first 100,000
    characters.
    """
    if outcome.answer is None or not item.references:
        return None
    references = [[reference[:MOST_CHARACTERS]] for reference in item.references]
    answers = [outcome.answer[:MOST_CHARACTERS]]
    # sacrebleu has no public way to these; tests compare the result with its corpus_score
    return row(*_chrf()._extract_corpus_statistics(answers, references)[0])  # noqa: SLF001


def chrf_of(sums: Floats) -> Floats:
    """The chrF2 score, 0 to 100, as sacrebleu computes it: shape (..., 18) to (...)."""
    import numpy as np

    ours, theirs, matches = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    counts = (ours > 0) & (theirs > 0)  # orders that both texts are long enough for
    orders = np.maximum(counts.sum(-1), 1)
    precision = np.where(counts, matches / np.maximum(ours, 1), 0).sum(-1) / orders
    recall = np.where(counts, matches / np.maximum(theirs, 1), 0).sum(-1) / orders
    below = BETA**2 * precision + recall
    above = (1 + BETA**2) * precision * recall
    score: Floats = np.divide(above, below, out=np.zeros_like(below), where=below > 0)
    return 100 * score


def rouge_l(item: Item, outcome: Outcome) -> float | None:
    """ROUGE-L's F-measure, 0 to 1, the largest of all references; without stemming.

    Letters of all scripts count, not a to z only. Only a text's first 2,000 words count.
    """
    if outcome.answer is None or not item.references:
        return None
    scores = _rouge().score_multi(list(item.references), outcome.answer)
    return float(scores["rougeL"].fmeasure)


NGRAM_METRICS: tuple[Metric, ...] = (
    mean_metric("rougeL", "ROUGE-L", "answer", rouge_l, is_bounded=True),
    Metric("chrf", "chrF", "answer", chrf_counts, chrf_of),
    Metric("bleu", "BLEU", "answer", bleu_counts, bleu_of),
)
LIBRARIES = {"rougeL": "rouge_score", "chrf": "sacrebleu", "bleu": "sacrebleu"}
"""The package that each metric needs."""
