"""Fixtures every part shares: models made once a session, a toolchain, a clean environment."""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from exporter.llamacpp.toolchain import Toolchain, find_toolchain
from tests.support import forked
from tests.support.tiny import make_adapter, make_base
from tests.support.warm import run_warm

# It replaces distutils, and fails where pip, which some tests ask for its index, came first.
with contextlib.suppress(ImportError):
    importlib.import_module("setuptools")

# For models so small, threads that spin while they wait for each other cost most of the time:
# torch's, which decant itself keeps to one in what it does with small models, and llama.cpp's,
# which this does not change in number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# other processes may have the processors
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

gc.disable()  # until the tests are collected: to import them makes no garbage
pytest_plugins = ("tests.support.suite",)
CHECKOUT = Path(__file__).parents[1]
SCRUBBED = ("DECANT_", "HF_", "LLAMA_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
KEPT = ("DECANT_CACHE", "DECANT_BACKEND", "DECANT_LLAMA_SDIST")


YOUNG = 50_000  # objects made before the next look for garbage; python's own 700 cost a tenth


def pytest_collection_finish() -> None:
    """Look for garbage seldom, and not among the thousands of tests."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder after the other; pytest looks through all there are to number one more."""
    folder = tmp_path_factory.mktemp("stores")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, stores: Iterator[Path]) -> None:
    """No test sees the developer's settings or touches their store; the builds are shared."""
    for name in os.environ:
        if name.startswith(SCRUBBED) and name not in KEPT:
            monkeypatch.delenv(name)
    store = next(stores)
    store.mkdir()
    monkeypatch.setenv("DECANT_STORE", str(store))
    monkeypatch.setenv("XDG_DATA_HOME", str(store.with_name(f"{store.name}-data")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def toolchain() -> Toolchain:
    """The built llama.cpp; without it the tests that need it fail."""
    return find_toolchain()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2 M-parameter Llama in bf16 with random weights. Treat as read-only."""
    return make_base(tmp_path_factory.mktemp("models") / "tiny-base")


@pytest.fixture(scope="session")
def tiny_adapter(tiny_base: Path) -> Path:
    """A rank-8 LoRA on all linear layers of `tiny_base`. Treat as read-only."""
    return make_adapter(tiny_base.parent / "tiny-lora", tiny_base)


Decant = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def decant() -> Decant:
    """Run the command line as a user does; gives the finished process."""

    def run(
        *arguments: object, timeout_s: float = 120, **env: str
    ) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "exporter", *map(str, arguments)]
        return forked.run(argv, env={**os.environ, **env}, timeout_s=timeout_s)

    return run


@pytest.fixture
def warm_decant() -> Decant:
    """`decant` for commands that need torch, in a process that has it already."""

    def run(
        *arguments: object, timeout_s: float = 120, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return run_warm(["exporter", *arguments], env={**os.environ, **env}, timeout_s=timeout_s)

    return run
