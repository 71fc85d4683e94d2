"""Items' values from known distributions, and how often intervals cover the true figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from runtime.evaluation.metric import Metric
from runtime.evaluation.metrics.likelihood_metrics import agreement_with
from runtime.evaluation.metrics.metric_choice import METRICS
from runtime.evaluation.statistics import difference, interval

SHARE, F1, MARGIN, LOSS = (METRICS[name] for name in ("exact_match", "f1", "margin", "loss"))
AGREEMENT = agreement_with({})
Array = np.ndarray
Draw = Callable[[np.random.Generator, int], Array]
"""Draws the statistics of n items: (n, 2); for pairs of models (2, n, 2)."""


@dataclass(frozen=True)
class Cell:
    """A distribution, and its true figure, or the true difference of a pair."""

    name: str
    metric: Metric
    draw: Draw
    truth: float
    is_pair: bool = False


def means(values: Array) -> Array:
    """The statistics of a mean, from values (..., n): (..., n, 2)."""
    return np.stack([values, np.ones_like(values)], -1)


def share(p: float) -> Cell:
    return Cell(f"share {p}", SHARE, lambda random, n: means((random.random(n) < p) * 1.0), p)


def f1_values(random: np.random.Generator, n: int, right: float, wrong: float) -> Array:
    """Values (n,): the shares `right` are 1 and `wrong` are 0, the others have the mean 2/3."""
    where = random.random(n)
    return np.where(where < wrong, 0.0, np.where(where > 1 - right, 1.0, random.beta(2, 1, n)))


def f1(right: float, wrong: float) -> Cell:
    truth = right + (1 - right - wrong) * 2 / 3
    return Cell(
        f"F1, {right} are 1, {wrong} are 0",
        F1,
        lambda random, n: means(f1_values(random, n, right, wrong)),
        truth,
    )


def mean(name: str, draw: Callable[[np.random.Generator, int], Array], truth: float) -> Cell:
    return Cell(name, MARGIN, lambda random, n: means(draw(random, n)), truth)


def per_token(name: str, spread: float, lengths: float) -> Cell:
    """Losses per token, higher for short texts; the true figure is that of a million texts."""

    def draw(random: np.random.Generator, n: int) -> Array:
        tokens = np.ceil(random.lognormal(3, lengths, n))
        loss = random.lognormal(0, spread, n) * (tokens / 20) ** -0.2
        return np.stack([loss * tokens, tokens], -1)

    many = draw(np.random.default_rng(1), 1_000_000).sum(0)
    return Cell(f"loss per token, {name}", LOSS, draw, float(many[0] / many[1]))


def agreement(clustered: float) -> Cell:
    """Items of 10 to 40 tokens, of which 0.99 agree; clustered: the items' inequality, 0 to 1."""
    size = 1 / clustered - 1

    def draw(random: np.random.Generator, n: int) -> Array:
        tokens = random.integers(10, 41, n)
        equal = random.binomial(tokens, random.beta(0.99 * size, 0.01 * size, n))
        return np.stack([equal, tokens], -1).astype(float)

    name = f"agreement of tokens, clustered {clustered}"
    return Cell(name, AGREEMENT, draw, 0.99)


def f1_pair(right: float, lost: float) -> Cell:
    """Two models with four fifths equal answers; ours has the share `lost` wrong in addition."""

    def draw(random: np.random.Generator, n: int) -> Array:
        theirs, other = (f1_values(random, n, right, 0) for _ in range(2))
        ours = np.where(random.random(n) < 0.8, theirs, other)
        return means(np.stack([np.where(random.random(n) < lost, 0.0, ours), theirs]))

    truth = -lost * (right + (1 - right) * 2 / 3)
    return Cell(f"F1 differences, {right} are 1, {lost} lost", F1, draw, truth, is_pair=True)


def loss_pair(name: str, draw: Callable[[np.random.Generator, Array], Array], truth: float) -> Cell:
    """Two models: the losses of theirs are lognormal, ours are higher by `draw`."""

    def both(random: np.random.Generator, n: int) -> Array:
        theirs = random.lognormal(0, 1, n)
        return means(np.stack([theirs + draw(random, theirs), theirs]))

    return Cell(f"loss differences, {name}", MARGIN, both, truth, is_pair=True)


def cells() -> Iterator[Cell]:
    """All distributions that are tried."""
    yield from map(share, (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98))
    for right, wrong in ((0.25, 0.25), (0.6, 0.05), (0.9, 0.01), (0.95, 0.02), (0.05, 0.7)):
        yield f1(right, wrong)
    yield mean("lognormal 0.5", lambda r, n: r.lognormal(0, 0.5, n), np.exp(0.125))
    yield mean("lognormal 1", lambda r, n: r.lognormal(0, 1, n), np.exp(0.5))
    yield mean("gamma 1", lambda r, n: r.gamma(1, 1, n), 1)
    yield mean("gamma 0.5", lambda r, n: r.gamma(0.5, 1, n), 0.5)
    yield mean("normal", lambda r, n: r.normal(0, 1, n), 0)
    yield per_token("0.5", 0.5, 0.5)
    yield per_token("1", 1, 0.8)
    yield agreement(0.01)
    yield agreement(0.1)
    yield f1_pair(0.6, 0)
    yield f1_pair(0.9, 0)
    yield f1_pair(0.6, 0.05)
    yield f1_pair(0.9, 0.05)
    yield loss_pair("equal", lambda r, x: x * (np.exp(r.normal(0, 0.2, len(x))) - np.exp(0.02)), 0)
    yield loss_pair(
        "all worse", lambda r, x: x * 0.1 * r.lognormal(0, 0.5, len(x)), 0.1 * np.exp(0.625)
    )
    yield loss_pair(
        "few unequal", lambda r, x: r.standard_t(3, len(x)) * (r.random(len(x)) < 0.2), 0
    )


def coverage(cell: Cell, n: int, draws: int, seed: int) -> tuple[float, float]:
    """The share of draws whose interval covers the truth, and the intervals' mean width."""
    random, covered, width = np.random.default_rng(seed), 0, 0.0
    for _ in range(draws):
        rows = cell.draw(random, n)
        if cell.is_pair:
            found = difference(cell.metric, *rows, 0)
            covered += found.low <= cell.truth <= found.high
            width += found.high - found.low
        else:
            alone = interval(cell.metric, rows, 0)
            covered += alone.low <= cell.truth <= alone.high
            width += alone.high - alone.low
    return covered / draws, width / draws
