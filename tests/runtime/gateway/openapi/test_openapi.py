"""The gateway's description of itself, held against what it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.gateway.openapi.openapi_routes import document
from tests.runtime.gateway.conftest import Served, serving
from tests.support.gateway_paths import ALIASES, NOT_DONE, served_paths

SAID = (501, 503)
"""What a server may answer that is well: it cannot do that, or not now."""
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
TOKENS = 4
EXAMPLES = 20
DOCUMENT = document(served_paths(), has_keys=False)
LABELS = [
    f"{method.upper()} {path}"
    for path, item in DOCUMENT["paths"].items()
    for method in item
    if path not in ALIASES
]


@pytest.fixture(scope="module")
def operations() -> dict[str, Any]:
    """The described operations by method and path. schemathesis is slow to import."""
    import schemathesis

    schema = schemathesis.openapi.from_dict(DOCUMENT)
    found = [operation.ok() for operation in schema.exclude(path=ALIASES).get_all_operations()]
    return {operation.label: operation for operation in found}


def cases(operation: Any) -> st.SearchStrategy[Any]:
    """Requests of the described form, and where there is a body, some that are not."""
    from schemathesis import GenerationMode

    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if not operation.body:
        return right
    return right | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)


@pytest.fixture(scope="module")
def gateway(pirate, tmp_path_factory) -> Iterator[Served]:
    arguments = (pirate, "--parallel", "2", "--ctx", "512", "--threads", "1")
    with serving(tmp_path_factory.mktemp("schema"), *arguments) as found:
        found.wait_until_ready()
        yield found


def test_every_route_is_described():
    described = {
        (method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item
    }
    served = {
        (method, path.replace(":path}", "}"))
        for method, path in served_paths()
        if method != "HEAD" and not path.startswith(NOT_DONE)
    }

    assert served == described


@pytest.mark.llamacpp
@pytest.mark.trained
class TestServed:
    def test_the_description_is_served(self, gateway):
        status, told = gateway.get("/openapi.json")

        assert status == 200
        assert told["paths"].keys() == DOCUMENT["paths"].keys()

    def test_every_description_is_tried(self, operations):
        assert list(operations) == LABELS

    @pytest.mark.faults
    @pytest.mark.parametrize("label", LABELS)
    def test_what_is_asked_as_described_is_answered_as_described(self, label, operations, gateway):
        from schemathesis.checks import not_a_server_error
        from schemathesis.specs.openapi import checks as conformance

        conforms = [
            conformance.content_type_conformance,
            conformance.response_schema_conformance,
            conformance.status_code_conformance,
        ]

        @given(case=cases(operations[label]))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def asked(case):
            shorten(case.body, gateway.models)
            response = case.call(base_url=gateway.url, timeout=60)
            checks = conforms if response.status_code in SAID else [not_a_server_error, *conforms]
            case.validate_response(response, checks=checks)

        before = gateway.children()
        asked()

        assert set(before) <= set(gateway.children())


def shorten(body: Any, models: list[str]) -> None:
    """Ask for few tokens, and mostly for a model that there is."""
    if not isinstance(body, dict):
        return
    for name in LIMITS:
        given = body.get(name)
        body[name] = given if isinstance(given, str | list | dict) else TOKENS
    if isinstance(body.get("options"), dict):
        body["options"]["num_predict"] = TOKENS
    name = body.get("model")
    if isinstance(name, str) and len(name) < 6:
        body["model"] = models[0]
