"""An engine's numbers for the adapters of a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.engine.adapters import Adapter
from runtime.engine.lora_scales import EXPLICIT_MAX, lora_vector
from runtime.engine.opened_model import Model
from runtime.gateway.catalog import with_adapter
from runtime.gateway.scheduling.engine_entry import EngineEntry, key_of, model_for
from runtime.gateway.scheduling.placement import Key, Role
from runtime.gateway.scheduling.request_queue import RequestQueue
from runtime.gateway.settings import Settings

A, B, C = (Adapter(name, Path(f"{name}.gguf"), 1.0) for name in "abc")


def engine(*adapters: Adapter, role: Role = "generate") -> EngineEntry:
    model = Model(None, adapters)
    return EngineEntry(Key("m", role), model, RequestQueue(1, Settings(), lambda: 0.0))


def lora(*scales: float) -> dict[str, Any]:
    return {"lora": [{"id": number, "scale": scale} for number, scale in enumerate(scales)]}


@pytest.mark.parametrize(
    ("loaded", "named", "sent", "expected"),
    [
        ((A, B), (A, B), lora(0.5, 0), lora(0.5, 0)),
        ((A, B), (B,), lora(2), lora(0, 2)),  # a was removed, and the engine has it still
        ((A, B), (B, C), lora(1, 0), lora(0, 1)),  # c was added, and is not needed
        ((B, A), (A, B), lora(1, 0), lora(0, 1)),
        ((A, B), (), {}, lora(0, 0)),  # the model has no adapters any more
        ((), (A,), lora(0), {"lora": []}),
        ((), (), {}, {}),
        ((A, B), (A, B), lora(1), lora(1)),  # a client's own
        ((A, B), (B,), {"lora": [{"id": 7, "scale": 1}, "x", {"id": [0], "scale": 1}]}, lora(0, 0)),
        ((A, B), (A, B), {"lora": [{"id": 1 << 40, "scale": 1}]}, lora(0)),
        ((A, B), (B,), {"lora": "x"}, {"lora": "x"}),
    ],
)
def test_each_adapter_has_the_scale_that_the_request_gives_it(loaded, named, sent, expected):
    assert engine(*loaded).for_engine(sent, named) == expected


def test_an_engine_with_fixed_scales_is_sent_none():
    assert engine(A, role="fixed").for_engine({"prompt": "x"}, (A,)) == {"prompt": "x"}


def test_an_adapter_that_is_out_has_no_number():
    found = engine(A, B, C)
    found.out = {1: "broken"}

    assert found.for_engine(lora(0, 0, 1), (A, B, C)) == lora(0, 1)


def test_many_adapters_are_not_all_written_out():
    many = [Adapter(str(n), Path(f"{n}.gguf"), 1.0) for n in range(EXPLICIT_MAX + 1)]
    found = engine(*many)
    scales = [0.0] * len(many)
    base = found.for_engine(lora(*scales), many)
    scales[7] = 0.5

    assert base == lora(0) == lora_vector([0.0] * len(many))  # an empty list would say nothing
    short = {"lora": [{"id": 7, "scale": 0.5}]}
    assert found.for_engine(lora(*scales), many) == short == lora_vector(scales)
    assert found.for_engine(short, many) == short
    assert engine(many[7], A).for_engine(short, many) == lora(0.5, 0)


def test_a_version_of_an_adapter_is_another_adapter():
    newer = Adapter(A.name, A.path, A.scale, version=1)

    assert engine(A).has([A])
    assert not engine(A).has([newer])
    assert engine(A).for_engine(lora(1), (newer,)) == lora(0)


def test_engines_with_fixed_scales_are_known_by_their_adapters_not_by_places():
    """b is first among b and c as a is among a and b."""
    model, later = Model(None, (A, B), own=(None, None)), Model(None, (B, C), own=(None, None))
    key, other = (key_of(with_adapter("m", one, 0), "fixed") for one in (model, later))

    assert key != other
    assert key == key_of(with_adapter("m", Model(None, (C, A), own=(None,) * 2), 1), "fixed")
    assert model_for(key, model).adapters == (A,)
    assert model_for(key_of(with_adapter("m", model, 0), "generate"), model) is model
