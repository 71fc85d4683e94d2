"""The Homebrew formula has the values of the release, and no others."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from vendor.formula import FIELD, TEMPLATE, filled, main

CHECKOUT = Path(__file__).parents[2]
URLS = '[project.urls]\nIssues = "x"\nSource = "https://forge.example/decant/"\n'


@pytest.fixture
def sdist(tmp_path) -> Path:
    path = tmp_path / "decant_llm-1.2.0rc1.tar.gz"
    path.write_bytes(b"an sdist")
    return path


def test_the_formula_has_the_releases_values(sdist):
    text = filled(sdist, URLS)

    assert f'sha256 "{hashlib.sha256(b"an sdist").hexdigest()}"' in text
    assert 'version "1.2.0rc1"' in text
    assert 'homepage "https://forge.example/decant"' in text
    url = "https://forge.example/decant/releases/download/v1.2.0rc1/decant_llm-1.2.0rc1.tar.gz"
    assert f'url "{url}"' in text
    assert not FIELD.search(text)
    assert text.startswith("class Decant < Formula\n")


def test_a_project_without_addresses_shows_what_is_missing(sdist):
    assert 'homepage "SOURCE-IN-PROJECT-URLS"' in filled(sdist, "[project]\nname = 'decant'")
    assert "SOURCE-IN" in filled(sdist, 'Source = "https://elsewhere"')


def test_another_file_is_refused(tmp_path, capsys):
    wheel = tmp_path / "decant_llm-1.2.0-py3-none-any.whl"
    wheel.write_bytes(b"")

    assert main([str(wheel)]) == 1
    assert "no sdist of decant" in capsys.readouterr().err


def test_the_formula_is_that_of_the_project():
    project = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    text = TEMPLATE.read_text(encoding="utf-8")
    (about,) = re.findall(r'^description = "(.*)"$', project, re.MULTILINE)
    sdist = project.partition("[tool.hatch.build.targets.sdist]")[2]

    assert f'desc "{about}"' in text
    assert 'license "MIT"' in text
    assert '"constraints.txt"' in sdist  # which the formula installs by
    assert "decant setup" in text
    assert "vendor.formula" in (CHECKOUT / "vendor" / "release.sh").read_text(encoding="utf-8")
