"""An upload and its token stay with the hub that is named."""

from __future__ import annotations

import json

import pytest

from exporter.core.errors import UploadError
from exporter.hub.upload.upload_guard import addresses_in
from tests.exporter.hub.upload.conftest import Pushing
from tests.support.upload_files import FakeRepo
from tests.support.upload_stage import REPO

pytestmark = pytest.mark.lasting  # a hub and sockets: seconds in all


def test_the_other_host_of_large_files_gets_no_token(pushing: Pushing):
    pushing.hub.faults.store = pushing.hub.other

    pushing.push()

    assert pushing.is_right()
    elsewhere = [one for one in pushing.hub.requests if one.host.startswith("localhost")]
    assert {one.method for one in elsewhere} == {"PUT", "POST"}
    assert {one.authorization for one in elsewhere} == {None}


def test_the_parts_of_a_large_file_may_go_elsewhere_too(pushing: Pushing):
    pushing.hub.faults.store, pushing.hub.faults.chunk = pushing.hub.other, 1500

    pushing.push()

    assert pushing.is_right()
    assert {one.authorization for one in pushing.hub.puts()} == {None}


def test_a_redirect_to_another_host_is_an_error_and_sends_nothing_there(pushing: Pushing):
    pushing.hub.faults.redirect = pushing.hub.other

    with pytest.raises(UploadError, match="redirects to http://localhost, and an upload goes only"):
        pushing.push()

    assert not [one for one in pushing.hub.requests if one.host.startswith("localhost")]


def test_no_host_is_asked_that_large_files_do_not_go_to(pushing: Pushing):
    pushing.hub.repos[REPO] = FakeRepo()
    pushing.hub.faults.next_page = pushing.hub.other

    with pytest.raises(UploadError, match="refers to localhost, which is none of its hosts"):
        pushing.push()

    assert not [one for one in pushing.hub.requests if one.host.startswith("localhost")]


@pytest.mark.parametrize(
    ("answer", "addresses"),
    [
        (
            {
                "href": "https://a.example/x",
                "header": {
                    "1": "https://b.example/1",
                    "2": "http://c.example/2",
                    "chunk_size": "9",
                },
            },
            {"https://a.example/x", "https://b.example/1"},
        ),
        ({"href": "http://a.example/x"}, set()),
        ({"href": "file:///etc/passwd"}, set()),
        ({}, set()),
    ],
)
def test_large_files_leave_an_https_hub_by_https_alone(answer: object, addresses: set[str]):
    batch = json.dumps({"objects": [{"oid": "x", "actions": {"upload": answer}}]}).encode()

    assert set(addresses_in(batch, "https")) == addresses


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b'{"objects": 1}', b'{"objects": [{"actions": 1}]}']
)
def test_an_answer_of_another_form_names_no_address(answer: bytes):
    assert set(addresses_in(answer, "https")) == set()


def test_huggingface_hub_is_left_as_it_was(pushing: Pushing):
    import logging

    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import are_progress_bars_disabled

    logger = logging.getLogger("huggingface_hub")

    def state() -> tuple[object, ...]:
        return (
            list(logger.handlers), logger.level, logger.propagate, are_progress_bars_disabled(),
            constants.HF_HUB_DISABLE_TELEMETRY, len(get_session().event_hooks["response"]),
        )  # fmt: skip

    before = state()
    pushing.push()

    assert state() == before
