from __future__ import annotations

import pytest

from exporter.hub.access_token import TokenRule, find_token, origin

HUB = "https://huggingface.co/api"


@pytest.mark.parametrize(
    ("url", "trusted", "is_sent"),
    [
        (HUB, (), True),
        ("http://huggingface.co/api", (), False),
        ("https://huggingface.co.evil.com/", (), False),
        ("https://huggingface.co@evil.com/", (), False),
        ("https://hf-mirror.com/", (), False),
        ("https://hf-mirror.com/", ("hf-mirror.com",), True),
        ("http://hf-mirror.com/", ("hf-mirror.com",), False),
        ("https://hf-mirror.com:8443/", ("hf-mirror.com:443",), False),
        ("https://cdn.hf-mirror.com/", ("hf-mirror.com",), False),
        ("http://127.0.0.1:8080/", ("127.0.0.1",), True),
        ("http://127.0.0.1:8080/", (), False),
    ],
)
def test_token_goes_to_the_hub_and_trusted_hosts_only(
    url: str, trusted: tuple[str, ...], is_sent: bool
):
    assert (TokenRule("hf_x", trusted).token_for(url) == "hf_x") is is_sent


def test_token_is_not_in_the_rule_as_printed():
    assert "hf_x" not in repr(TokenRule("hf_x"))


def test_given_token_goes_first():
    assert find_token("hf_given", {}) == "hf_given"
    assert find_token(None, {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}) is None


def test_origin_knows_the_usual_ports():
    assert origin("https://a.b/c") == origin("https://A.b:443/d") != origin("http://a.b/c")
