"""What `decant doctor` finds out about endpoints."""

from __future__ import annotations

import socket
import time

import pytest
from huggingface_hub import constants

from exporter.cli.doctor import Finding, endpoints
from exporter.hub.endpoints import parse_endpoint
from exporter.hub.reachability import reach
from tests.conftest import Decant
from tests.support.hub_stage import Stage

pytestmark = pytest.mark.faults


def test_each_endpoint_is_asked_once_in_order(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    stage.b.faults.html_api = True
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", f"{stage.a.url},{stage.b.url}")
    good, bad = endpoints()
    assert (good.status, good.found.startswith(f"{stage.a.name} answers in ")) == ("ok", True)
    assert bad == Finding(
        "endpoint", "warning",
        f"{stage.b.name} answers with a web page: a login page or a portal?",
        "check the network, its login page and HTTPS_PROXY; or list others:"
        " export HF_ENDPOINT=https://hf-mirror.com,https://huggingface.co",
    )  # fmt: skip
    assert [len(hub.requests) for hub in (stage.a, stage.b)] == [1, 1]
    assert stage.a.requests[0].authorization is None


def test_modelscope_is_asked_in_its_own_language(stage: Stage):
    assert reach(parse_endpoint(f"modelscope:{stage.a.url}")).problem == ""
    assert stage.a.requests[0].path.startswith("/api/v1/models/")


def test_endpoint_in_trouble_is_named(stage: Stage):
    stage.a.faults.api_status = [503]
    assert reach(parse_endpoint(stage.a.url)).problem == "answers 503"
    stage.a.__exit__()
    assert reach(parse_endpoint(stage.a.url)).problem == "cannot be reached"


def test_silent_endpoint_costs_no_more_than_its_time(stage: Stage):
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        found = reach(parse_endpoint(f"http://127.0.0.1:{server.getsockname()[1]}"), timeout_s=0.1)
    assert (found.problem, time.monotonic() - began < 1) == ("stalls", True)


def test_offline_nobody_is_asked(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", stage.a.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (check,) = endpoints()
    assert (check.status, "not asked" in check.found) == ("ok", True)
    assert stage.a.requests == []


def test_nonsense_in_the_environment_is_a_line_of_the_report(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "ftp://x")
    (check,) = endpoints()
    assert (check.status, check.found) == (
        "warning", "the endpoint 'ftp://x' is not an address (HF_ENDPOINT)",
    )  # fmt: skip


def test_doctor_has_an_offline_flag(stage: Stage, decant: Decant):
    assert "not asked" in decant("doctor", "--offline", HF_ENDPOINT=stage.a.url).stdout
    assert stage.a.requests == []
    assert "answers in" in decant("doctor", HF_ENDPOINT=stage.a.url, HF_HUB_OFFLINE="0").stdout
    assert len(stage.a.requests) == 1
