"""Models that fake engines serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from runtime.engine.adapters import Adapter
from runtime.engine.opened_model import Model, open_model
from tests.support.fake_engine import behave
from tests.support.raw import write_tiny_gguf


@pytest.fixture
def model(tmp_path) -> Callable[..., Model]:
    def make(name: str, **how: object) -> Model:
        path = behave(write_tiny_gguf(tmp_path / f"{name}.gguf"), **how)
        found = replace(open_model(path), chat_template="{{ messages[0].content }}")
        return replace(found, adapters=(Adapter("a", path, 1.0),), own=(None,))

    return make
