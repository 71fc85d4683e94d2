"""Intervals, differences and tests: by simulation, and against SciPy."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.evaluation.exact_tests import share_difference, share_interval, sign_test, t_quantile
from runtime.evaluation.item import Item
from runtime.evaluation.metrics.figures import mean_metric, ratio
from runtime.evaluation.metrics.metric_choice import METRICS
from runtime.evaluation.outcome import Outcome
from runtime.evaluation.resampling import bca_interval, resample_count, resampled
from runtime.evaluation.statistics import (
    difference,
    interval,
    item_values,
    item_verdicts,
    statistics_of,
    win_loss_tie,
)
from tests.support.known_figures import cells, coverage

pytestmark = pytest.mark.lasting

CELLS = {cell.name: cell for cell in cells()}
SHARE, F1, LOSS, LENGTH = (METRICS[name] for name in ("exact_match", "f1", "loss", "length"))


def rows(values) -> np.ndarray:
    """The statistics of a mean: shape (n,) to (n, 2)."""
    values = np.asarray(values, float)
    return np.stack([values, np.where(np.isnan(values), np.nan, 1)], 1)


@pytest.mark.parametrize("n", [50, 200])
@pytest.mark.parametrize("p", [0.7, 0.9])
def test_intervals_of_shares_cover(n, p):
    random = np.random.default_rng(n)
    draws = [interval(SHARE, rows(random.random(n) < p), 0) for _ in range(1000)]

    covered = np.mean([found.low <= p <= found.high for found in draws])

    assert covered == pytest.approx(0.95, abs=0.02)


NEAR = (0.93, 0.97)
SMALL = (0.93, 1.0)
"""Where so few items differ that many draws have none."""


@pytest.mark.parametrize(
    ("name", "n", "least", "most"),
    [
        ("F1, 0.6 are 1, 0.05 are 0", 20, *NEAR),
        ("F1, 0.95 are 1, 0.02 are 0", 20, *SMALL),
        ("F1, 0.95 are 1, 0.02 are 0", 50, *SMALL),
        ("F1, 0.05 are 1, 0.7 are 0", 50, *NEAR),
        ("lognormal 0.5", 20, *NEAR),
        ("lognormal 1", 20, 0.92, 0.97),
        ("lognormal 1", 50, *NEAR),
        ("gamma 0.5", 50, *NEAR),
        ("loss per token, 0.5", 50, *NEAR),
        ("loss per token, 1", 20, *NEAR),
        ("loss per token, 1", 50, *NEAR),
        ("agreement of tokens, clustered 0.01", 50, *SMALL),
        ("agreement of tokens, clustered 0.1", 50, *NEAR),
        ("F1 differences, 0.9 are 1, 0.05 lost", 50, *SMALL),
        ("loss differences, all worse", 50, *NEAR),
        ("loss differences, equal", 50, 0.95, 0.98),
    ],
)
def test_intervals_cover_what_they_are_drawn_from(name, n, least, most):
    """docs/eval.md says where they fall short."""
    covered, _ = coverage(CELLS[name], n, 1000, seed=0)

    assert least <= covered <= most


def test_intervals_of_bounded_values_that_are_0_or_1_are_those_of_shares():
    for count in (0, 1, 15, 20):
        statistics = rows([1] * count + [0] * (20 - count))
        share, bounded = (interval(metric, statistics, 0) for metric in (SHARE, F1))
        assert (bounded.low, bounded.high) == pytest.approx((share.low, share.high))


@pytest.mark.parametrize(("n", "most"), [(20, 0.3), (50, 0.14), (1000, 0.02)])
def test_differences_of_few_unequal_answers_are_not_absurdly_wide(n, most):
    """Student's t alone gives 0.11, 0.08 and 0.017."""
    _, width = coverage(CELLS["F1 differences, 0.6 are 1, 0 lost"], n, 300, seed=0)

    assert width < most


def test_answers_that_are_all_tied_leave_a_difference_possible():
    found = difference(F1, rows(np.ones(50)), rows(np.ones(50)), 0)

    assert -0.06 < found.low < -0.02 < 0.02 < found.high < 0.06
    assert found.verdict == "no difference shown"


@pytest.mark.parametrize("n", [10, 50, 200])
@pytest.mark.parametrize("lengths", [0.1, 0.8])
def test_equal_losses_are_seldom_found_different(lengths, n):
    """Some 4 % of draws; of 200 alone, more than 10 are too many by chance now and then."""
    false_alarms = 0
    for seed in range(1000):
        random = np.random.default_rng(seed)
        tokens = np.ceil(random.lognormal(3, lengths, n))
        hard = random.lognormal(0, 0.5, n)
        ours, theirs = (
            np.stack([tokens * hard * random.lognormal(0, 0.3, n), tokens], 1) for _ in range(2)
        )
        found = difference(LOSS, ours, theirs, seed)
        false_alarms += found.verdict != "no difference shown"

    assert false_alarms <= 50


@pytest.mark.parametrize("n", [5, 10, 50, 200])
@pytest.mark.parametrize("metric", [SHARE, F1])
def test_equal_models_are_seldom_found_different(metric, n):
    false_alarms = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        hard = random.random(n)
        ours, theirs = (
            random.random(n) < hard if metric is SHARE else random.beta(2 * hard + 0.1, 1)
            for _ in range(2)
        )
        found = difference(metric, rows(ours), rows(theirs), seed, 500)
        false_alarms += found.verdict != "no difference shown"

    assert false_alarms <= 10


def test_models_that_seldom_differ_are_seldom_found_different():
    """Quantiles of the bootstrap find one in a fifth of such draws."""
    false_alarms = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        ours, theirs = rows(np.ones(50)), rows(np.ones(50))
        ours[:, 0] += np.where(random.random(50) < 0.8, 0, random.standard_t(3, 50))
        found = difference(F1, ours, theirs, seed, 500)
        false_alarms += found.verdict != "no difference shown"

    assert false_alarms <= 10


def test_a_better_model_is_found():
    random = np.random.default_rng(0)
    base = random.normal(2, 1, 100)
    ours = base - 0.2 + random.normal(0, 0.3, 100)  # the pairing shows it: spreads are 1

    found = difference(LOSS, rows(ours), rows(base), 0)

    assert found.verdict == "better"
    assert found.value == pytest.approx(np.mean(ours - base))
    assert found.low < found.value < found.high < 0
    assert found.words == (
        f"better by {-found.value:.3g} nats ({-found.high:.3g} to {-found.low:.3g}) at n = 100"
    )
    assert found.wins == np.sum(ours < base)


def test_a_worse_share_is_found_by_mcnemars_test():
    ours, theirs = rows([0] * 9 + [1] * 31), rows([1] * 9 + [0] * 1 + [1] * 30)

    found = difference(SHARE, ours, theirs, 0)

    assert found.verdict == "worse"
    assert (found.wins, found.losses, found.ties) == (1, 9, 30)
    assert found.p == pytest.approx(scipy.stats.binomtest(1, 10).pvalue)
    assert found.value == pytest.approx(-0.2)


def test_mcnemars_test_decides_even_if_the_interval_is_narrow():
    """5 of 5 have p = 0.0625."""
    ours, theirs = rows([1] * 50), rows([0] * 5 + [1] * 45)

    assert difference(SHARE, ours, theirs, 0).words == "no difference shown at n = 50"


def test_a_difference_that_is_neither_better_nor_worse_is_named():
    random = np.random.default_rng(0)
    theirs = random.normal(100, 5, 30)

    found = difference(LENGTH, rows(theirs - 9 + random.random(30)), rows(theirs), 0)

    assert found.verdict == "differs"
    assert found.words.startswith("lower by 8.")
    assert (found.wins, found.losses, found.ties) == (0, 0, 30)


@pytest.mark.parametrize("metric", [SHARE, F1])
def test_a_model_does_not_differ_from_itself(metric):
    same = rows(np.random.default_rng(0).random(40) < 0.5)

    found = difference(metric, same, same, 0)

    assert (found.value, found.verdict, found.ties) == (0, "no difference shown", 40)


def test_rounding_is_no_difference():
    values = np.random.default_rng(0).random(40)

    found = difference(F1, rows(values + 1e-12), rows(values), 0)

    assert (found.verdict, found.ties) == ("no difference shown", 40)


@pytest.mark.parametrize("n", range(5))
@pytest.mark.parametrize("metric", [SHARE, F1])
def test_few_items_have_no_verdict(metric, n):
    found = difference(metric, rows([1] * n), rows([0] * n), 0)

    assert found.verdict == "no difference shown"
    assert found.words == f"too few items to tell: n = {n}"
    assert np.isfinite([found.value, found.low, found.high]).all()


def test_items_that_only_one_model_has_are_left_out_of_both():
    ours, theirs = rows([1, np.nan, 3, 4, 5, 6, 7]), rows([1, 9, np.nan, 4, 5, 6, 7])

    found = difference(F1, ours, theirs, 0)

    assert (found.n, found.value) == (5, 0)
    assert item_verdicts(F1, ours, theirs) == ["tie", "", "", "tie", "tie", "tie", "tie"]


def test_wins_are_counted_in_the_metrics_direction():
    ours, theirs = rows([1, 2, 3, np.nan]), rows([2, 2 + 1e-12, 1, 1])

    assert win_loss_tie(LOSS, ours, theirs) == (1, 1, 1)
    assert win_loss_tie(F1, ours, theirs) == (1, 1, 1)
    assert item_verdicts(LOSS, ours, theirs) == ["win", "tie", "loss", ""]
    assert item_verdicts(F1, ours, theirs) == ["loss", "tie", "win", ""]


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_no_figure_is_nan(metric):
    """Of no items, of one, and of resamples that miss the only item with a label."""
    items = [Item("1", 1, references=("a",)), Item("2", 2, references=("{}",))]
    outcomes = [Outcome(), Outcome("", labels={"a": -1.0, "{}": -2.0})]
    found = statistics_of(metric, items, outcomes)
    empty = statistics_of(metric, [], [])

    for statistics in (found, empty):
        values = interval(metric, statistics, 0, 50)
        assert np.isfinite([values.value, values.low, values.high]).all()
    assert np.isnan(item_values(metric, found)[0])


def test_an_item_that_was_refused_has_no_statistics():
    metric = mean_metric("one", "one", "answer", lambda _item, _outcome: 1.0)
    outcomes = [Outcome("yes"), Outcome("yes", refusal="too long")]

    found = statistics_of(metric, [Item("1", 1), Item("2", 2)], outcomes)

    assert np.isnan(found[1]).all()
    assert interval(metric, found, 0).n == 1


def test_a_seed_repeats_an_interval():
    statistics = np.random.default_rng(0).integers(0, 9, (30, 18)).astype(float)
    chrf = METRICS["chrf"]

    assert interval(chrf, statistics, 3, 500) == interval(chrf, statistics, 3, 500)
    assert interval(chrf, statistics, 3, 500) != interval(chrf, statistics, 4, 500)


def test_an_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(0).exponential(size=400)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval

    found = bca_interval(ratio, rows(values), 0, 10_000)

    assert found == pytest.approx(tuple(theirs), abs=0.01)


def test_an_interval_of_few_skewed_items_is_scipys_widened():
    values = np.random.default_rng(3).lognormal(0, 0.6, size=20)
    width = scipy.stats.t.ppf(0.975, 19) * (20 / 19) ** 0.5
    theirs = scipy.stats.bootstrap(
        (values,),
        np.mean,
        method="BCa",
        confidence_level=2 * scipy.stats.norm.cdf(width) - 1,
        n_resamples=50_000,
        rng=np.random.default_rng(0),
    ).confidence_interval

    found = bca_interval(ratio, rows(values), 0, 50_000)

    assert found == pytest.approx(tuple(theirs), rel=0.025)


def test_perplexity_has_the_interval_of_the_loss():
    statistics = rows(np.random.default_rng(0).exponential(size=60))
    loss, perplexity = (interval(METRICS[name], statistics, 0) for name in ("loss", "perplexity"))

    assert perplexity.low == pytest.approx(np.exp(loss.low), rel=0.02)
    assert perplexity.high == pytest.approx(np.exp(loss.high), rel=0.02)


def test_resamples_draw_as_many_items_as_there_are():
    statistics = np.concatenate([np.eye(7), np.ones((7, 1))], axis=1)

    totals = resampled(lambda sums: sums[..., -1], statistics, 0, 500)
    first = resampled(lambda sums: sums[..., 0], statistics, 0, 20_000)

    assert (totals == 7).all()
    assert np.mean(first) == pytest.approx(1, abs=0.03)
    assert np.var(first) == pytest.approx(6 / 7, abs=0.05)


def test_fewer_resamples_are_drawn_of_very_many_items():
    asked = 10_000

    assert [resample_count(n, asked) for n in (1, 20_000, 100_000, 10**7)] == [
        asked,
        asked,
        2_000,
        1_000,
    ]
    assert resample_count(10**7, 50) == 50


def test_many_items_are_resampled_soon():
    statistics = np.random.default_rng(0).random((10_000, 3))
    start = time.process_time()

    resampled(lambda sums: sums[..., 0], statistics, 0, 2_000)

    assert time.process_time() - start < 2


@given(st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=40, deadline=None)
def test_the_sign_test_is_scipys(wins, losses):
    theirs = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1

    assert sign_test(wins, losses) == pytest.approx(theirs, rel=1e-7)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 6, 9, 30, 1000])
def test_quantiles_of_t_are_scipys(freedom):
    assert t_quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=2e-3)


@pytest.mark.parametrize("n", [10, 20, 50, 200, 1000])
def test_intervals_of_shares_cover_whatever_the_share(n):
    """Exactly computed; shares so small that 2 items are not expected are left out."""
    counts = np.arange(n + 1)
    low, high = np.array([share_interval(count, n) for count in counts]).T

    shares = np.linspace(2 / n, 1 - 2 / n, 97)
    chances = scipy.stats.binom.pmf(counts, n, shares[:, None])
    covered = (chances * ((low <= shares[:, None]) & (shares[:, None] <= high))).sum(1)

    assert 0.947 < np.mean(covered) < 0.961
    assert covered.min() > 0.915
    assert low[0] == 0
    assert high[-1] == 1


@pytest.mark.parametrize(("count", "n"), [(0, 1), (1, 1), (7, 10), (180, 200), (0, 5000)])
def test_intervals_of_shares_are_near_wilsons(count, n):
    theirs = scipy.stats.binomtest(count, n).proportion_ci(method="wilson")

    low, high = share_interval(count, n)

    assert 0 <= low <= count / n <= high <= 1
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.2 / n**0.5)


@pytest.mark.parametrize("n", [20, 100])
def test_intervals_of_differences_of_shares_cover(n):
    random = np.random.default_rng(5)
    counts = random.multinomial(n, [0.15, 0.05, 0.8], size=1000)

    ends = [share_difference(int(more), int(less), n) for more, less, _ in counts]

    assert 0.93 <= np.mean([low <= 0.1 <= high for low, high in ends]) <= 0.99
