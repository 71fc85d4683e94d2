"""Two hubs with chosen faults, and the pulls that they serve."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from exporter.core.events import Report, silent
from exporter.hub.endpoints import parse_endpoint
from exporter.hub.pull import Pulled, PullRequest, pull
from exporter.hub.repo_refs import parse_ref
from exporter.hub.timeouts import Limits
from tests.support.fake_hub import FakeHub
from tests.support.forked import popen
from tests.support.hub_files import REPO, FakeFile, Faults, random_bytes

CHECKOUT = Path(__file__).parents[2]
NAME = "model.safetensors"


@dataclass(frozen=True)
class Result:
    """The demand and the measurement of a row, and whether the demand holds."""

    demanded: str
    measured: str
    holds: bool


@dataclass
class Stage:
    """Two hubs with the same file, and an empty cache."""

    folder: Path
    size: int = 64 << 20
    limits: Limits = field(default_factory=Limits)
    stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        files = {NAME: random_bytes(self.size), "config.json": FakeFile(b"{}", is_lfs=False)}
        self.a = self.stack.enter_context(FakeHub(files))
        self.b = self.stack.enter_context(FakeHub(self.a.files))
        self.cache = self.folder / "hub"

    @property
    def ratio(self) -> float:
        """The bytes that both hubs sent, divided by the size of all files."""
        return (self.a.sent + self.b.sent) / (self.size + 2)

    def fail(self, **faults: object) -> None:
        self.a.faults = Faults(**faults)

    def pull(self, *hubs: FakeHub, report: Report = silent, **more: object) -> Pulled:
        """Pull in this process."""
        request = PullRequest(
            ref=parse_ref(REPO),
            endpoints=tuple(parse_endpoint(hub.url) for hub in hubs or (self.a, self.b)),
            cache=self.cache,
            limits=self.limits,
        )
        return pull(replace(request, **more), report=report)

    def start(self, *hubs: FakeHub, **options: object) -> subprocess.Popen[str]:
        """Pull in a separate process."""
        endpoints = [word for hub in hubs for word in ("--endpoint", hub.url)]
        return popen(
            [sys.executable, "-m", "exporter", "pull", REPO, *endpoints],
            env={
                **os.environ,
                "HF_HUB_CACHE": str(self.cache),
                "HF_HUB_OFFLINE": "0",
                "DECANT_CACHE": str(self.folder / "decant"),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def wait_until_sent(self, nbytes: float) -> None:
        deadline = time.monotonic() + 60
        while self.a.sent + self.b.sent < nbytes:
            assert time.monotonic() < deadline, "nothing is being sent"
            time.sleep(0.005)

    def is_right(self) -> bool:
        """Whether the published snapshot has exactly the planned content."""
        snapshot = self.cache / "models--org--model" / "snapshots" / self.a.commit
        return (snapshot / NAME).read_bytes() == self.a.files[NAME].data

    def is_empty(self) -> bool:
        """Whether nothing was published."""
        root = self.cache / "models--org--model"
        return not (root / "snapshots").exists() and not (root / "blobs" / self.etag).exists()

    @property
    def etag(self) -> str:
        return self.a.files[NAME].etag


Row = Callable[[Stage], Result]


def within(limit: float, stage: Stage, *, done: bool = True, extra: str = "") -> Result:
    holds = stage.ratio <= limit and done and stage.is_right()
    return Result(f"<= {limit:.2f} x", f"{stage.ratio:.4f} x{extra}", holds)
