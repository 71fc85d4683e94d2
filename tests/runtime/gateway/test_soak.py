"""A short soak; `python benchmarks/soak.py` is the long one."""

from __future__ import annotations

import pytest

from tests.runtime.conftest import PROMPTS
from tests.runtime.gateway.conftest import serving
from tests.runtime.gateway.soak import Soak

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.faults]

SECONDS, SLOTS = 15, 4
MODELS = ("base", "base:pirate", "base:liar")
MIB = 1 << 20


def test_nothing_is_lost_or_left_behind(voices, tmp_path):
    with serving(tmp_path, *voices, "--parallel", SLOTS) as served:
        expected = {(m, p): served.says(m, p) for m in MODELS for p in PROMPTS}
        soak = Soak(served, expected)
        soak.run(2, kill_every_s=9)  # what is allocated once is
        soak.run(SECONDS, kill_every_s=5)

    assert soak.wrong == []
    assert soak.kills >= 2
    assert soak.answers["right"] > 10
    assert soak.answers["lost to a kill"] <= soak.kills * SLOTS  # who waits is answered later
    assert soak.last["children"] <= 2  # with the one for /v1/messages
    assert soak.last["fds"] <= soak.first["fds"] + 4
    assert soak.last["rss"] <= soak.first["rss"] + 8 * MIB
