"""Runs upstream's tests against one program that takes llama-server's arguments."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.llamacpp.toolchain import Toolchain
from tests.support.png import make_png
from tests.upstream.models import make_models
from tests.upstream.tree import unpack_tests

CHECKOUT = Path(__file__).parents[2]
SHARDS = 2  # processes that share the tests; most of their time is waiting for servers
SUITE_S = 1800
NOTHING_RUN = 5  # pytest's exit code
HIDDEN = ("LLAMA_", "HF_", "AIP_", "PYTEST_", "SLOW_TESTS", "DEBUG", "PORT", "N_GPU_LAYERS")
"""Variables that upstream's tests or server would take for settings."""
NOWHERE = "http://127.0.0.1:9"  # discard: whatever wants to download is refused at once


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one test."""

    outcome: str
    """passed, failed or skipped."""
    why: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Suite:
    """The tests and the models they run with."""

    tests: Path
    files: dict[str, str]
    pictures: tuple[str, ...]
    """PNGs in base64, for those the tests would download."""


def make_suite(folder: Path, toolchain: Toolchain) -> Suite:
    pictures = [make_png(folder / f"{side}.png", side) for side in (64, 80)]
    return Suite(
        unpack_tests(folder / "tree"),
        make_models(folder / "models", toolchain),
        tuple(base64.b64encode(picture.read_bytes()).decode() for picture in pictures),
    )


def run_suite(
    suite: Suite,
    program: Path,
    *,
    only: Collection[str] | None = None,
    options: Sequence[str] = (),
) -> dict[str, Outcome]:
    """What came of each test, by its id, with `program` as the server."""
    running = [start(suite, program, only, options, shard) for shard in range(SHARDS)]
    try:
        codes = [process.wait(SUITE_S) for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its servers, too
    for shard, code in enumerate(codes):
        assert code in (0, 1, NOTHING_RUN), log(suite, shard).read_text()[-5000:]
    return {test: one for shard in range(SHARDS) for test, one in told(suite, shard).items()}


def told(suite: Suite, shard: int) -> dict[str, Outcome]:
    """What a process wrote down; the worst, where a test's end went wrong, too."""
    found: dict[str, Outcome] = {}
    for line in outcomes(suite, shard).read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        before = found.get(one["test"])
        if before is None or before.outcome == "passed":
            found[one["test"]] = Outcome(one["outcome"], one["why"], one["seconds"])
    return found


def start(
    suite: Suite,
    program: Path,
    only: Collection[str] | None,
    options: Sequence[str],
    shard: int,
) -> subprocess.Popen[bytes]:
    """pytest over a part of the tests."""
    settings = {
        "files": suite.files, "pictures": suite.pictures, "shard": [shard, SHARDS],
        "outcomes": str(outcomes(suite, shard)), "only": None if only is None else sorted(only),
    }  # fmt: skip
    argv = [
        sys.executable, "-m", "pytest", "-q", "-p", "tests.upstream.plugin",
        "-p", "no:randomly",  # its tests lean on their order
        "-p", "no:cacheprovider", "-m", "not slow", *options, "unit",
    ]  # fmt: skip
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)
    } | {
        "PYTHONPATH": str(CHECKOUT),
        "LLAMA_SERVER_BIN_PATH": str(program),
        "LLAMA_CACHE": str(suite.tests / "tmp"),
        "HF_ENDPOINT": NOWHERE,
        "MODEL_ENDPOINT": NOWHERE,
        "DECANT_UPSTREAM": json.dumps(settings),
    }
    outcomes(suite, shard).write_text("")
    with log(suite, shard).open("wb") as file:
        return subprocess.Popen(
            argv, cwd=suite.tests, env=environment, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def outcomes(suite: Suite, shard: int) -> Path:
    return suite.tests / f"outcomes-{shard}.jsonl"


def log(suite: Suite, shard: int) -> Path:
    return suite.tests / f"log-{shard}.txt"
