from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.mini_sdist import HOST, FakeIndex, Mini, make_mini, no_smoke
from vendor.build import Build, build


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def mini(tmp_path: Path) -> Mini:
    return make_mini(tmp_path / "mini")


@pytest.fixture
def index(mini: Mini) -> Iterator[FakeIndex]:
    """An index that serves the miniature, which is then no longer named by path."""
    with FakeIndex(mini.sdist.name, mini.sdist.read_bytes()) as index:
        del mini.env["DECANT_LLAMA_SDIST"]
        mini.env["PIP_INDEX_URL"] = index.url
        yield index


@dataclass(frozen=True)
class Built:
    mini: Mini
    build: Build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """One finished miniature for every test that only looks at it."""
    mini = make_mini(tmp_path_factory.mktemp("built"))
    return Built(mini, build(mini.recipe, env=mini.env, smoke=no_smoke, host=HOST))
