"""`decant serve --isolate`: adapters side by side, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.conftest import PROMPTS
from tests.runtime.gateway.conftest import MODELS, Served, asking, chat, serving, until, used

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]


@pytest.fixture(scope="module")
def isolated(voices, tmp_path_factory) -> Iterator[Served]:
    """A gateway whose processes have one slot each."""
    folder = tmp_path_factory.mktemp("isolated")
    with serving(folder, *voices, "--isolate", "--parallel", 1) as found:
        found.wait_until_ready()
        yield found


def states(served: Served) -> dict[str, str]:
    _, listed = served.get("/v1/models")
    return {model["id"]: model["status"]["value"] for model in listed["data"]}


def test_the_base_has_a_process_and_adapters_have_theirs_when_they_are_asked_for(voices, tmp_path):
    with serving(tmp_path, *voices, "--isolate", "--parallel", 1) as fresh:
        fresh.wait_until_ready()
        assert states(fresh) == {
            "base": "loaded", "base:pirate": "unloaded", "base:liar": "unloaded"
        }  # fmt: skip
        assert len(fresh.children()) == 1
        fresh.says("base:pirate", PROMPTS[0], max_tokens=1)

        assert states(fresh)["base:pirate"] == "loaded"
        assert len(fresh.children()) == 2


def test_the_list_says_which_models_share_a_process(isolated, served):
    engines = {
        name: [model["engine"] for model in gateway.get("/v1/models")[1]["data"]]
        for name, gateway in (("isolated", isolated), ("shared", served))
    }

    assert engines == {"isolated": list(MODELS), "shared": ["base"] * 3}


def test_answers_are_those_of_a_shared_process(isolated, served):
    for model in (*MODELS, *reversed(MODELS), "base:pirate@0.5"):
        for prompt in PROMPTS:
            assert isolated.says(model, prompt) == served.says(model, prompt)


def test_nobody_waits_for_a_turn(isolated):
    """All three are answered at once; a fast machine may end one before the last has begun."""
    long = {"max_tokens": 400, "ignore_eos": True, "stream": True}
    bodies = [chat(model, PROMPTS[0], **long) for model in MODELS]
    path, at_once = "/v1/chat/completions", []
    while 3 not in at_once and len(at_once) < 20:
        with asking(isolated, path, bodies[0]) as one, asking(isolated, path, bodies[1]) as two:
            with asking(isolated, path, bodies[2]) as three:
                for connection in (one, two, three):
                    assert connection.recv(1).startswith(b"H")
                at_once.append(used(isolated))
        assert until(lambda: used(isolated) == 0)

    assert 3 in at_once
    assert isolated.metric("decant_epoch_switches_total") == 0


def test_its_processes_keep_the_weights_in_the_order_of_the_file(isolated):
    """Other orders are copies, which each process would have for itself."""
    for pid in isolated.children():
        assert b"--no-repack" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
