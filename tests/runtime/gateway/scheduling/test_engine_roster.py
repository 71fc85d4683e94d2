"""Which engine answers while adapters come and go."""

from __future__ import annotations

from pathlib import Path

from runtime.engine.adapters import Adapter
from runtime.engine.opened_model import Model
from runtime.gateway.catalog import with_adapter
from runtime.gateway.scheduling.engine_phase import Loaded
from runtime.gateway.scheduling.engine_roster import EngineRoster
from runtime.gateway.settings import Settings

A, B = (Adapter(name, Path(f"{name}.gguf"), 1.0) for name in "ab")
BOTH, ONE = Model(None, (A, B), own=(None, None)), Model(None, (B,), own=(None,))


def roster() -> EngineRoster:
    return EngineRoster(Settings(), lambda: 0.0, {})


def test_an_engine_that_is_ending_takes_no_request():
    found, asked = roster(), with_adapter("m", BOTH, 0)
    found.models["m"] = ONE
    left = found.engine(asked, "generate")
    assert found.engine(asked, "generate") is left
    left.is_ending = True

    assert found.engine(asked, "generate") is not left


def test_the_present_engine_answers_with_a_removed_adapter_until_it_is_replaced():
    found, asked = roster(), with_adapter("m", BOTH, 0)
    present = found.engine(asked, "generate")
    present.phase = Loaded(None, None)
    found.models["m"] = ONE
    later = found.successor_of(present)

    assert found.engine(asked, "generate") is present
    assert found.take_over(later) is present
    assert found.engine(asked, "generate") is present  # retired, and in nobody's place
    assert found.engine(with_adapter("m", ONE, 0), "generate") is later
