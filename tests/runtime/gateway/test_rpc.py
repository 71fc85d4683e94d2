"""`decant serve --rpc`: a gateway whose models are computed by workers that come and go."""

from __future__ import annotations

import pytest

from runtime.rpc.worker import Worker
from tests.runtime.conftest import PROMPTS
from tests.runtime.gateway.conftest import chat, serving, until
from tests.support.rpc_workers import LOOPBACK, address, of_commit, spec

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

ROUTE = "/v1/chat/completions"


def said(gateway) -> dict[str, str]:
    return {model: gateway.says(model, PROMPTS[0]) for model in gateway.models}


@pytest.mark.slow
def test_answers_are_those_of_home_and_a_dead_worker_costs_no_more_than_time(
    voices, served, toolchain, tmp_path
):
    expected = said(served)
    with Worker(spec(), toolchain) as one, Worker(spec(), toolchain) as other:
        port = one.port
        workers = f"{address(one)},{address(other)}"
        with serving(tmp_path, *voices, "--rpc", workers, "--parallel", 1) as gateway:
            assert said(gateway) == expected
            one.stop()
            body = chat(gateway.models[0], PROMPTS[0])
            with gateway.send("POST", ROUTE, body) as response:  # the one that finds out
                assert response.status == 503
                assert int(response.getheader("Retry-After")) >= 1
            told = f"no worker answers at {LOOPBACK}:{port}"
            assert until(lambda: told in gateway.ask(ROUTE, body)[1]["error"]["message"])
            with gateway.send("POST", ROUTE, body) as response:  # one that is told so
                assert response.status == 503
                assert int(response.getheader("Retry-After")) >= 1
            assert gateway.get("/livez")[0] == 200
            with Worker(spec(port), toolchain):
                assert until(lambda: gateway.ask(ROUTE, body)[0] == 200, 40)
                assert said(gateway) == expected


def test_two_models_share_a_worker(pirate, demo_base, toolchain, tmp_path):
    with Worker(spec(), toolchain) as worker:
        options = ("--rpc", address(worker), "--parallel", 1, "--ctx", 128)
        with serving(tmp_path, pirate, demo_base, *options) as gateway:
            texts = said(gateway)
            assert len(gateway.children()) == 2

    assert len(set(texts.values())) == 2


def test_a_worker_of_another_llama_cpp_is_refused_before_anything_is_served(
    demo_base, toolchain, decant
):
    with Worker(spec(), of_commit(toolchain, "feedbeef0")) as worker:
        done = decant("serve", demo_base, "--port", "0", "--rpc", address(worker))

    assert done.returncode == 9
    assert "feedbeef0" in done.stderr
    assert toolchain.info["commit"] in done.stderr
    assert done.stdout == ""


def test_what_is_no_worker_is_told_at_once(demo_base, decant):
    gone = decant("serve", demo_base, "--port", "0", "--rpc", "127.0.0.1:1")
    wrong = decant("serve", demo_base, "--rpc", "127.0.0.1")
    alone = decant("serve", demo_base, "--rpc-unchecked")

    assert (gone.returncode, wrong.returncode, alone.returncode) == (9, 3, 2)
    assert "decant worker" in gone.stderr
    assert "HOST:PORT" in wrong.stderr
