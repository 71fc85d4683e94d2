"""decant's version, where it is installed and where it is only a checkout."""

from __future__ import annotations

from importlib import metadata

import pytest

from exporter.core import version as module
from exporter.core.version import own_version, version


@pytest.fixture(autouse=True)
def asked_for_the_first_time():
    """What a test makes of the versions is forgotten after it."""
    version.cache_clear()
    yield
    version.cache_clear()


def missing(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


def test_a_checkout_that_is_not_installed_has_the_version_of_its_project(monkeypatch, tmp_path):
    installed = own_version()
    version.cache_clear()
    monkeypatch.setattr(module.metadata, "version", missing)

    assert own_version() == installed
    assert own_version(tmp_path / "pyproject.toml") == "unknown"
    assert version("decant-llm") == ""


def test_a_version_is_looked_up_once(monkeypatch):
    found = version("click")
    monkeypatch.setattr(module.metadata, "version", missing)

    assert found
    assert version("click") == found
