"""A hub with a base whose weights are large enough to see whether they were sent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from tests.support.hub_stage import Stage

MIB = 1 << 20
NBYTES = 8 * MIB


@pytest.fixture
def base(tmp_path, monkeypatch) -> Iterator[Stage]:
    """A hub with a base of 8 MiB of weights, of which nothing is here."""
    stage = Stage(tmp_path, size=NBYTES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setenv("HF_ENDPOINT", stage.a.url)
    monkeypatch.setenv("DECANT_CACHE", str(stage.folder / "decant"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(stage.cache))
    with stage.stack:
        yield stage
