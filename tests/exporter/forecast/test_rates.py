"""Rates that are measured and kept."""

from __future__ import annotations

from collections import Counter

import pytest

import exporter.forecast.rates as module
from exporter.forecast.rates import Rates, gathered, stroke
from exporter.forecast.work import Target, Task
from exporter.llamacpp.converter_import import imported
from exporter.quantize.quantizer import Quantizer


def task(kind: str, *, rank: int = 0, weighted: bool = False) -> Task:
    return Task("BF16", rank, "float32", (Target(kind, weighted=weighted),))


def test_the_smallest_kinds_count_with_the_largest():
    values = Counter({task("Q4_K"): 900, task("Q6_K"): 95, task("F32"): 5})

    assert gathered(values) == {task("Q4_K"): 905, task("Q6_K"): 95}


def test_a_stroke_takes_some_milliseconds():
    assert 1e-4 < stroke() < 1


@pytest.fixture
def rates(toolchain, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    with imported(toolchain):  # as in an export
        yield Rates(toolchain, Quantizer.load(toolchain), 2)


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.lasting
def test_a_type_that_is_searched_takes_longer_than_a_cast(rates):
    cast = rates.pace(task("F16", rank=8))
    searched = rates.pace(task("IQ3_S", rank=8, weighted=True))

    assert cast.main_s > 0
    assert searched.all_s > 3 * cast.all_s


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.lasting
def test_three_files_take_longer_than_one(rates):
    target = Target("IQ3_S", weighted=True)

    one = rates.pace(Task("BF16", 0, "float32", (target,)))
    three = rates.pace(Task("BF16", 0, "float32", (target,) * 3))

    assert three.all_s > 1.5 * one.all_s


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.lasting
def test_a_kept_rate_is_not_measured_again_until_it_is_old(rates, toolchain, monkeypatch):
    first = rates.pace(task("F16"))
    measured = []
    monkeypatch.setattr(module, "pace_of", lambda *_: measured.append(1) or first)

    assert Rates(toolchain, rates.quantizer, 2).pace(task("F16")) == first
    assert not measured

    monkeypatch.setattr(module, "KEPT_S", 0)
    rates.pace(task("F16"))
    assert measured


@pytest.mark.llamacpp
def test_the_disk_s_rate_is_measured_without_leaving_a_file(rates, tmp_path):
    place = tmp_path / "output"
    place.mkdir()

    assert 0 < rates.write_s(place / "not yet" / "there") < 1e-5
    assert not list(place.iterdir())
