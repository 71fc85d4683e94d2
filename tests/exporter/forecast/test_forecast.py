"""What a dry run says of the export, and what the export then takes."""

from __future__ import annotations

import json

import pytest

from benchmarks.large_shapes import LARGE, make_large
from exporter.cli.outputs.gguf_output import duration_text, forecast_text
from exporter.forecast.forecast import Forecast

FOUND = Forecast(
    seconds=12.4,
    memory_nbytes=900_000_000,
    loading_nbytes=0,
    disk_nbytes=808_000_000,
    is_lower_bound=False,
    planning_s=4,
    merging_s=2,
    computing_s=5,
    writing_s=6,
    verifying_s=2.4,
    base_nbytes=2_500_000_000,
    cold_nbytes=0,
)
MINUTE, HOUR = 60, 3600


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.34, "2.3 s"), (12.4, "12 s"), (8 * MINUTE, "8 min"), (2.5 * HOUR, "2.5 h")],
)
def test_durations_are_as_exact_as_a_forecast(seconds, text):
    assert duration_text(seconds) == text


def test_the_sentence_says_time_memory_and_disk():
    assert forecast_text(FOUND) == "would take about 12 s, 900 MB of memory, 808 MB of disk"


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.slow
def test_the_headers_of_70_b_are_enough(warm_decant, tmp_path):
    base, adapter = make_large(tmp_path, LARGE["70 B"])
    words = ("export", str(adapter), "--base", str(base), "-q", "Q4_K_M", "--dry-run", "--json")

    shown = warm_decant(*words, "-o", str(tmp_path / "out.gguf"))

    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)["forecast"]
    assert found["base_nbytes"] == pytest.approx(141e9, rel=0.01)
    assert found["disk_nbytes"] == pytest.approx(42.5e9, rel=0.01)
    assert 0.8e9 < found["memory_nbytes"] < 2e9  # queries are whole: 0.27 GB in float32, and copies
    assert found["seconds"] > 30
    assert not found["is_lower_bound"]
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.lasting
def test_each_part_adds_to_the_whole(warm_decant, tiny_base, tiny_adapter, tmp_path):
    words = ("export", str(tiny_adapter), "--base", str(tiny_base), "--dry-run", "--json")
    found = {}
    for name, options in {
        "one": (),
        "two": ("-q", "Q8_0", "-q", "F16"),
        "unverified": ("--no-verify",),
    }.items():
        shown = warm_decant(*words, *options, "-o", str(tmp_path / "out"))
        assert shown.returncode == 0, shown.stderr
        found[name] = json.loads(shown.stdout)["forecast"]

    one, two, unverified = found["one"], found["two"], found["unverified"]
    assert one["seconds"] == pytest.approx(
        one["planning_s"] + one["writing_s"] + one["verifying_s"]
    )
    assert two["verifying_s"] > 1.5 * one["verifying_s"]
    assert two["disk_nbytes"] > one["disk_nbytes"]
    assert unverified["verifying_s"] == unverified["loading_nbytes"] == 0
    assert unverified["memory_nbytes"] < one["memory_nbytes"]
