from __future__ import annotations

import pytest

from exporter.core.errors import InputError
from exporter.hub.endpoints import Endpoint, endpoints_from, parse_endpoint, settle_endpoints

A, B = Endpoint("https://a"), Endpoint("https://b")


def test_endpoints_given_go_before_the_environment():
    assert endpoints_from(("https://a", "b"), {"HF_ENDPOINT": "https://c"}) == (A, B)


def test_hf_endpoint_may_be_a_list():
    env = {"HF_ENDPOINT": "https://a, https://b,modelscope:"}
    settle_endpoints(env)
    assert env["HF_ENDPOINT"] == "https://a"  # all that huggingface_hub understands
    assert [endpoint.url for endpoint in endpoints_from((), env)] == [
        "https://a", "https://b", "https://modelscope.cn",
    ]  # fmt: skip


def test_without_a_word_it_is_the_hub():
    (endpoint,) = endpoints_from((), {})
    assert endpoint.is_reference
    assert not parse_endpoint("https://hf-mirror.com").is_reference
    assert not parse_endpoint("http://huggingface.co").is_reference


def test_modelscope_may_know_the_repo_by_another_name():
    assert parse_endpoint("modelscope:Org/Name") == Endpoint(
        "https://modelscope.cn", "modelscope", "Org/Name"
    )


@pytest.mark.parametrize(
    "text",
    [
        "ftp://x",
        "https://",
        "--quiet",
        "https://u:p@host",
        "",
        "https://h:99999",
        "https://[::1",
        "modelscope:ftp://x",
    ],
)
def test_endpoint_that_is_no_address_is_refused(text: str):
    with pytest.raises(InputError, match="is not an address"):
        parse_endpoint(text)


def test_modelscope_named_as_a_hub_is_explained():
    with pytest.raises(InputError) as caught:
        parse_endpoint("https://www.modelscope.cn")
    assert caught.value.hint == (
        "as a source of bytes, beside a hub: HF_ENDPOINT=https://huggingface.co,modelscope:"
    )


def test_modelscope_alone_is_refused():
    with pytest.raises(InputError, match="ModelScope alone"):
        endpoints_from(("modelscope:",), {})
