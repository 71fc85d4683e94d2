"""The server for a tool: one that runs is used if it has the model, else one is started."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from exporter.core.errors import EngineError, UnsupportedError
from exporter.core.events import silent
from runtime.engine.remote import Remote, parse_url
from runtime.launch import model_service
from runtime.launch.coding_tools import WANTED_CONTEXT
from runtime.launch.model_service import (
    LocalModel,
    endpoint_at,
    endpoint_here,
    local_model,
    started,
)
from tests.support.processes import descendants, wait_until
from tests.support.raw import write_tiny_gguf


@pytest.fixture
def tiny(tmp_path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf")


def test_a_port_without_a_server_has_no_model():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    assert endpoint_here(port, "any", "") is None
    with pytest.raises(EngineError) as refused:
        endpoint_at(Remote("http", "127.0.0.1", port, ""), "any")
    assert "decant serve any" in refused.value.hint


@pytest.mark.lasting
def test_a_program_that_says_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(model_service, "PROBE_S", 0.2)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent_one:
        assert endpoint_here(silent_one.getsockname()[1], "any", "") is None


def test_the_server_knows_no_key_but_the_given_one(monkeypatch):
    monkeypatch.setenv("DECANT_API_KEY", "another")

    assert "DECANT_API_KEY" not in model_service.environment("")
    assert model_service.environment("mine")["DECANT_API_KEY"] == "mine"


@pytest.mark.llamacpp
def test_a_model_without_a_template_is_refused(tiny, toolchain):
    with pytest.raises(UnsupportedError, match="chat template"):
        local_model(tiny, None, None, toolchain)


@pytest.mark.llamacpp
@pytest.mark.trained
def test_the_context_is_the_models_up_to_what_tools_want(pirate, toolchain):
    found = local_model(pirate, None, None, toolchain)

    assert found.context is not None
    assert 0 < found.context <= WANTED_CONTEXT
    assert local_model(pirate, None, 100, toolchain).context == 100


@pytest.mark.llamacpp
@pytest.mark.lasting
def test_an_error_of_the_server_is_the_errors_text(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")

    with (
        pytest.raises(EngineError) as refused,
        started(LocalModel(broken, None, None), "", tmp_path / "log", report=silent),
    ):
        pass
    assert "broken.gguf" in refused.value.message


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.lasting
def test_a_server_of_its_own_has_the_model_loaded_and_ends(pirate, tmp_path, monkeypatch):
    (tmp_path / "exporter.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    before = set(descendants(os.getpid()))
    with started(LocalModel(pirate, None, 300), "k3y", tmp_path / "log", report=silent) as found:
        children = set(descendants(os.getpid())) - before
        assert (found.model, found.context, found.key) == ("pirate", 300, "k3y")
        again = endpoint_at(parse_url(found.url, "k3y"), "pirate")
        port = int(found.url.rpartition(":")[2])
        assert again == found
        assert endpoint_here(port, "pirate", "k3y") == found
        assert endpoint_here(port, "pirate", "") is None
        assert endpoint_here(port, "other", "k3y") is None
        with pytest.raises(EngineError) as refused:
            endpoint_at(parse_url(found.url, "k3y"), "pirat")
        assert "pirate" in refused.value.hint
    assert len(children) >= 2
    assert wait_until(lambda: not children & set(descendants(os.getpid())))
