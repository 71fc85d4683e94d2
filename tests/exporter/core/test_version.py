"""decant's version, where it is installed and where it is only a checkout."""

from __future__ import annotations

from importlib import metadata

from exporter.core import version as module
from exporter.core.version import own_version, version


def missing(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


def test_a_checkout_that_is_not_installed_has_the_version_of_its_project(monkeypatch, tmp_path):
    installed = own_version()
    monkeypatch.setattr(module.metadata, "version", missing)

    assert own_version() == installed
    assert own_version(tmp_path / "pyproject.toml") == "unknown"
    assert version("decant-llm") == ""
