"""Stores of other programs in a home folder made for the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.other_home import OtherHome, make_home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OtherHome:
    return make_home(tmp_path / "home", monkeypatch)
