"""What is kept of rows of logits is what a softmax over all of them gives."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.scoring import log_softmax
from runtime.scoring.log_softmax import reduced


@pytest.mark.parametrize("width", [3, 700, log_softmax.BLOCK + 5])
def test_values_and_likeliest_are_those_of_the_whole_row(width):
    source = np.random.default_rng(1)
    logits = (source.standard_normal((9, width)) * 20).astype(np.float32)
    rows = np.array([0, 0, 3, 8, 8, 8])
    tokens = source.integers(0, width, len(rows))
    whole = logits.astype(np.float64)
    peak = whole.max(axis=1, keepdims=True)
    whole -= peak + np.log(np.exp(whole - peak).sum(axis=1, keepdims=True))

    found = reduced(logits, rows, tokens, 3)

    np.testing.assert_allclose(found.values, whole[rows, tokens], atol=2e-6, rtol=1e-6)
    order = np.argsort(-whole, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(found.top_ids, order)
    np.testing.assert_allclose(
        found.top_values, np.take_along_axis(whole, order, axis=1), atol=2e-6, rtol=1e-6
    )


@pytest.mark.parametrize("top", [1, 2])
def test_of_equals_the_lower_id_comes_first(top):
    logits = np.array([[1, 5, 0, 5, 5]], np.float32)

    assert (
        list(reduced(logits, np.array([], int), np.array([], int), top).top_ids[0]) == [1, 3][:top]
    )


def test_logits_out_of_exps_range_are_no_trouble():
    logits = np.array([[1e30, 0.0, -1e30]], np.float32)

    found = reduced(logits, np.array([0, 0]), np.array([0, 1]), 0)

    assert found.values[0] == 0
    assert found.values[1] < -1e29
