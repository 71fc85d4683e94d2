"""Rearrangements that are followed by numbered matrices, against the same done to the product."""

from __future__ import annotations

import pytest

from exporter.convert.lora_products import moved
from exporter.convert.low_rank import CannotFollowError, Product
from exporter.core.errors import UnsupportedError

pytestmark = pytest.mark.trained

ROWS, COLUMNS, RANK = 12, 8, 3


def product(rows: int = ROWS, columns: int = COLUMNS) -> Product:
    import torch

    torch.manual_seed(0)
    return Product(torch.randn(RANK, columns), torch.randn(rows, RANK), frozenset({"weight"}))


def interleaved_heads(weight):
    """As Qwen3-Next's: each head's parts lie together, and come out part by part."""
    import torch

    turned = weight.permute(1, 0).contiguous().view(-1, 2, 6)  # (in, head, part)
    q, k, v = torch.split(turned, [1, 2, 3], dim=-1)
    parts = [part.contiguous().view(COLUMNS, -1) for part in (q, k)]
    yield "qk.weight", torch.cat(parts, dim=-1).permute(1, 0).contiguous()
    yield "v.weight", v.contiguous().view(COLUMNS, -1).permute(1, 0).contiguous()


def columns_by_head(weight):
    """As Qwen3.5's output projection: the columns' heads are grouped otherwise."""
    yield "out.weight", weight.reshape(ROWS, 2, 2, 2).permute(0, 2, 1, 3).reshape(ROWS, COLUMNS)


def scaled_in_place(weight):
    """As Falcon-H1's: factors of some rows, in place."""
    weight = weight * 0.9
    weight[:5, :] *= 0.5
    weight[5:, :] *= 2.0
    yield "in.weight", weight


def scaled_by_column(weight):
    import torch

    yield "w.weight", weight * torch.linspace(1, 2, COLUMNS)


@pytest.mark.parametrize(
    "rearrange", [interleaved_heads, columns_by_head, scaled_in_place, scaled_by_column]
)
def test_what_is_done_to_a_weight_is_done_to_a_and_b(rearrange):
    import torch

    pair = product()
    with pytest.raises((CannotFollowError, TypeError)):
        list(rearrange(pair))

    found = moved(pair, rearrange)

    expected = list(rearrange((pair.b @ pair.a).clone()))
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, one), (_, whole) in zip(found, expected, strict=True):
        assert one.sources == pair.sources
        torch.testing.assert_close(one.b @ one.a, whole, atol=1e-5, rtol=1e-5)


def rounded(weight):
    """As BitNet's: to three levels, by the mean."""
    scale = weight.abs().mean().clamp(min=1e-5)
    yield "w.weight", (weight / scale).round().clamp(-1, 1) * scale


def shifted(weight):
    yield "w.weight", weight.abs() * 0 + weight + 1


def mixed(weight):
    yield "w.weight", weight.flip(0).abs() * 0 + weight + weight.roll(1, 0)


@pytest.mark.parametrize("rearrange", [rounded, shifted, mixed])
def test_more_than_moving_and_scaling_is_refused_as_that(rearrange):
    with pytest.raises(UnsupportedError, match="more to this model's weights than to move"):
        moved(product(), rearrange)


def test_a_pair_that_adds_nothing_may_be_refused_without_loss():
    pair = product()

    assert moved(Product(pair.a, pair.b * 0, pair.sources), rounded) == []
