from __future__ import annotations

from pathlib import Path

import pytest

from vendor.index import find_index
from vendor.report import BuildError


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({"UV_INDEX_URL": "https://old.example/simple"}, "https://old.example/simple"),
        ({"UV_DEFAULT_INDEX": "https://uv.example/simple"}, "https://uv.example/simple"),
        ({"UV_DEFAULT_INDEX": "corp=https://uv.example/simple"}, "https://uv.example/simple"),
        (
            {"PIP_INDEX_URL": "https://a.example/simple", "UV_INDEX_URL": "https://b.example"},
            "https://a.example/simple",
        ),
    ],
)
def test_index_is_the_one_pip_or_uv_is_told_to_use(env: dict[str, str], url: str):
    assert find_index(env, pip_settings=lambda _: "").url == url


def test_without_any_settings_it_is_pips_own_default():
    from pip._internal.models.index import PyPI

    assert find_index({}, pip_settings=lambda _: "").url == PyPI.simple_url.rstrip("/")


@pytest.mark.lasting
def test_index_of_pips_own_settings_is_used(tmp_path: Path):
    settings = tmp_path / "pip.conf"
    settings.write_text("[global]\nindex-url = https://mirror.example/simple\n")
    env = {"PIP_CONFIG_FILE": str(settings), "PATH": ""}
    assert find_index(env).url == "https://mirror.example/simple"


def test_pips_setting_for_install_goes_before_the_global_one():
    settings = "global.index-url='https://a.example'\ninstall.index-url='https://b.example'\n"
    assert find_index({}, pip_settings=lambda _: settings).url == "https://b.example"


def test_index_that_is_no_web_address_is_refused():
    index = find_index({"PIP_INDEX_URL": "file:///srv/simple"})
    with pytest.raises(BuildError, match="neither http nor https"):
        index.link("mini", "mini-1.0.tar.gz")
