"""A short soak; `python benchmarks/soak.py` is the long one."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.runtime.conftest import PROMPTS
from tests.runtime.gateway.conftest import serving, until
from tests.support.hostile_client import Hostile
from tests.support.soak_clients import Soak
from tests.support.soak_phases import Phases, percentile

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.faults, pytest.mark.slow]

SECONDS, SLOTS = 15, 4
MODELS = ("base", "base:pirate", "base:liar")
MIB = 1 << 20
ASK_GLIBC = """
import ctypes, pathlib, signal

def tell(*_):
    fields = [(f"field{n}", ctypes.c_size_t) for n in range(10)]
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = type("mallinfo2", (ctypes.Structure,), {"_fields_": fields})
    bytes(4 << 20)  # freed at once: glibc would now keep all that are smaller
    before = libc.mallinfo2().field3  # how many blocks are mapped
    blocks = [bytes(256 << 10) for _ in range(40)]  # some find a place that is there already
    pathlib.Path("PLACE").write_text(str(libc.mallinfo2().field3 - before))

signal.signal(signal.SIGUSR1, tell)
"""


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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no second address")
def test_one_hostile_client_costs_the_others_little_time_and_no_answer(voices, tmp_path):
    with serving(tmp_path, *voices, "--parallel", SLOTS) as served:
        expected = {(m, p): served.says(m, p) for m in MODELS for p in PROMPTS}
        soak = Soak(served, expected, clients=7, are_apart=True)
        phases, hostile = Phases(), Hostile(served.port)
        phases.run(soak, hostile, 14, phase_s=7)

        assert served.metric("decant_child_restarts_total") == 0
    quiet, beside = phases.quiet(soak.took), phases.beside(soak.took)
    assert soak.wrong == []
    assert hostile.faults == []
    assert hostile.done.total() > 10
    # and a moment that somebody else had the cores
    assert percentile(beside, 0.99) <= 3 * percentile(quiet, 0.99) + 0.5
    assert soak.last["rss"] <= soak.first["rss"] + 150 * MIB


def test_what_is_beside_an_attack_is_told_from_what_is_not():
    phases = Phases(attacks=[(10.0, 20.0)])
    took = [(1.0, 2.0), (9.0, 9.5), (9.0, 10.5), (12.0, 13.0), (19.0, 40.0), (24.0, 25.0), (26, 30)]

    assert phases.quiet(took) == [0.5, 1.0, 4]
    assert phases.beside(took) == [1.0, 1.0, 1.5, 21.0]
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2.0


def test_what_is_read_into_is_no_part_of_the_heap(voices, tmp_path):
    """It would split it, request by request."""
    place = tmp_path / "told"
    (tmp_path / "sitecustomize.py").write_text(ASK_GLIBC.replace("PLACE", str(place)))
    with serving(tmp_path, *voices, env={"PYTHONPATH": str(tmp_path)}) as served:
        served.process.send_signal(signal.SIGUSR1)

        assert until(lambda: place.exists() and place.read_text())
        assert int(place.read_text()) > 20
