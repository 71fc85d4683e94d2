from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from exporter.core.events import Event
from exporter.hub.timeouts import Limits
from tests.support.hub_stage import Stage

QUICK = Limits(
    stall_s=0.4, slow_s=0.3, bench_s=5, backoff_s=0.01, backoff_max_s=0.05, tick_s=0.01,
    cell=64 << 10, small=32 << 10, tries=4,
)  # fmt: skip


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests have a hub, on 127.0.0.1; other tests run with HF_HUB_OFFLINE."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Two hubs with one file of 2 MiB and a small one; impatient limits."""
    stage = Stage(tmp_path, size=2 << 20, limits=QUICK)
    with stage.stack:
        yield stage


class Events:
    """A report that remembers."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.seen.append(event)

    @property
    def text(self) -> str:
        return "\n".join(str(getattr(event, "message", "")) for event in self.seen)


@pytest.fixture
def events() -> Events:
    return Events()
