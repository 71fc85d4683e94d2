"""`decant serve`, asked over HTTP: adapters that never mix, turns, disconnects, many models."""

from __future__ import annotations

import json
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.lora_scales import lora_vector
from tests.runtime.conftest import PROMPTS
from tests.runtime.gateway.conftest import MODELS, Served, asking, chat, serving, until, used

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]
VARYING = re.compile(rb'"(id|created|model)":("[^"]*"|\d+)|"timings":\{[^}]*\}')


@pytest.fixture(scope="module")
def expected(served) -> dict[tuple[str, str], str]:
    """Each voice's answers, asked one voice after the other."""
    found = {(model, prompt): served.says(model, prompt) for model in MODELS for prompt in PROMPTS}
    for prompt in PROMPTS:
        assert len({found[model, prompt] for model in MODELS}) == len(MODELS)
    return found


@pytest.mark.parametrize("clients", [1, 4])
def test_no_answer_of_120_comes_from_the_wrong_adapter(clients, served, expected):
    order = random.Random(5).choices(list(expected), k=120)
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda asked: served.says(*asked), order))
    wrong = [(a, got) for a, got in zip(order, answers, strict=True) if got != expected[a]]

    assert wrong == []


def test_every_route_speaks_with_the_adapters_voice(served, expected):
    """Also those on which llama-server does not listen to `lora`."""
    prompt = PROMPTS[2]
    for model in (*MODELS, *reversed(MODELS)):
        body = chat(model, prompt, max_tokens=24)
        _, anthropic = served.ask("/v1/messages", body)
        _, responses = served.ask(
            "/v1/responses",
            {"model": model, "input": prompt, "max_output_tokens": 24, "temperature": 0},
        )
        assert anthropic["content"][0]["text"] == expected[model, prompt]
        assert responses["output"][0]["content"][0]["text"] == expected[model, prompt]
    embeddings = [
        served.ask("/v1/embeddings", {"model": model, "input": prompt})[1]["data"][0]["embedding"]
        for model in MODELS
    ]
    assert embeddings[0] != embeddings[1] != embeddings[2] != embeddings[0]


def test_a_scale_is_part_of_the_name(served, expected):
    prompt = PROMPTS[2]

    assert served.says("base:pirate@0", prompt) == expected["base", prompt]
    assert served.says("base:pirate@1", prompt) == expected["base:pirate", prompt]


def test_bytes_of_a_stream_are_the_childs_own(served, voices, toolchain, pirate_lora, liar_lora):
    body = chat("base:pirate", PROMPTS[0], stream=True, seed=1)
    with served.send("POST", "/v1/chat/completions", body) as response:
        through, kind = response.read(), response.getheader("Content-Type")
    spec = ServerSpec(voices[0], 512, 2, 4, (pirate_lora, liar_lora))
    with Server(spec, toolchain) as child:
        with child.post("/v1/chat/completions", {**body, **lora_vector([1.0, 0.0])}) as bare:
            direct = bare.read()
            assert bare.getheader("Content-Type") == kind

    assert VARYING.sub(b"", through) == VARYING.sub(b"", direct)
    assert through.endswith(b"data: [DONE]\n\n")


def test_a_short_request_is_not_starved_by_a_loop_of_others(served, expected):
    """Two clients ask for A without a pause; B's five tokens come within two seconds."""
    stop = threading.Event()
    served_a = []

    def loop() -> None:
        while not stop.is_set():
            served_a.append(served.says("base:pirate", random.choice(PROMPTS), max_tokens=20))

    with ThreadPoolExecutor(2) as pool:
        loops = [pool.submit(loop) for _ in range(2)]
        try:
            assert until(lambda: len(served_a) > 4)
            took = []
            for _ in range(3):
                began = time.monotonic()
                served.says("base:liar", PROMPTS[0], max_tokens=5)
                took.append(time.monotonic() - began)
                time.sleep(0.3)
        finally:
            stop.set()
        for one in loops:
            one.result()

    assert max(took) <= 2
    assert len(served_a) > 10


@pytest.fixture(scope="module")
def slow(endless, tmp_path_factory) -> Iterator[Served]:
    """A gateway over a model that never stops, with one slot and a queue of two."""
    arguments = (endless, "--parallel", 1, "--ctx", 16384, "--max-queue", 2)
    with serving(tmp_path_factory.mktemp("slow"), *arguments) as found:
        found.wait_until_ready()
        yield found


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(path, stream, slow):
    """While the metrics are polled, which would keep a stock llama-server from noticing."""
    options = {"num_predict": 8000}  # Ollama's
    body = chat("endless", "go", max_tokens=8000, stream=stream, options=options)
    with asking(slow, path, body):
        assert until(lambda: used(slow) == 1)
        time.sleep(0.3)
    began = time.monotonic()

    assert until(lambda: used(slow) == 0, 2)
    slow.says("endless", "hello", max_tokens=1)  # and the child has really let go
    assert time.monotonic() - began < 10  # 8,000 tokens would have taken longer


@pytest.fixture(scope="module")
def double(endless, tmp_path_factory) -> Iterator[Served]:
    """A gateway over a model that never stops, with two slots."""
    arguments = (endless, "--parallel", 2, "--ctx", 16384)
    with serving(tmp_path_factory.mktemp("double"), *arguments) as found:
        found.wait_until_ready()
        yield found


@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions", "/v1/completions", "/completion", "/v1/messages", "/v1/responses"],
)
def test_a_client_that_leaves_frees_its_slot_beside_somebodys_stream(path, double):
    """Whose tokens would keep a stock llama-server from noticing until its answer is complete."""
    body = chat("endless", "go", max_tokens=15000)
    with asking(double, "/v1/chat/completions", {**body, "stream": True}) as stream:
        stream.recv(1)
        text = {"prompt": "go", "input": "go", "n_predict": 15000, "max_output_tokens": 15000}
        with asking(double, path, {**body, **text}):
            assert until(lambda: used(double) == 2)
            time.sleep(0.3)

        assert until(lambda: used(double) == 1, 2)
    assert until(lambda: used(double) == 0, 2)


def test_who_leaves_the_queue_is_not_waited_for(slow):
    body = chat("endless", "go", max_tokens=8000)
    with asking(slow, "/v1/chat/completions", body):
        assert until(lambda: used(slow) == 1)
        with asking(slow, "/v1/chat/completions", body):
            assert until(lambda: slow.metric("decant_queue_depth") == 1)
        assert until(lambda: slow.metric("decant_queue_depth") == 0, 2)
    assert until(lambda: used(slow) == 0, 2)


def test_a_full_queue_says_so(slow):
    body = chat("endless", "go", max_tokens=8000)
    with asking(slow, "/v1/chat/completions", body):
        assert until(lambda: used(slow) == 1)
        with asking(slow, "/v1/chat/completions", body):
            with asking(slow, "/v1/chat/completions", body):
                assert until(lambda: slow.metric("decant_queue_depth") == 2)
                with slow.send("POST", "/v1/chat/completions", body) as response:
                    status, retry = response.status, response.getheader("Retry-After")
                    error = json.loads(response.read())["error"]
                assert slow.ask("/tokenize", {"content": "still served"})[0] == 200

    assert (status, error["code"]) == (429, "rate_limit_exceeded")
    assert int(retry) >= 1


@pytest.mark.slow
def test_1200_stalled_bodies_hold_nobody_up(served, expected):
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    )
    stalled = []
    try:
        for _ in range(1200):
            connection = socket.create_connection(("127.0.0.1", served.port))
            connection.sendall(head)
            stalled.append(connection)
        began = time.monotonic()
        status, _ = served.get("/livez")
        took = time.monotonic() - began
        answer = served.says("base:pirate", PROMPTS[0])
    finally:
        for connection in stalled:
            connection.close()

    assert (status, answer) == (200, expected["base:pirate", PROMPTS[0]])
    assert took < 1


def test_nothing_of_the_callers_environment_reaches_the_engine(voices, tmp_path):
    env = {"LLAMA_ARG_TOOLS": "all", "AIP_MODE": "PREDICTION", "AIP_HTTP_PORT": "9",
           "LLAMA_ARG_PORT": "1", "LLAMA_ARG_HOST": "0.0.0.0", "HF_TOKEN": "hf_secret"}  # fmt: skip
    with serving(tmp_path, *voices, env=env) as poisoned:
        assert poisoned.says("base", PROMPTS[2]).startswith("A cow")
        for path in ("/tools", "/predict", "/props", "/slots", "/cors-proxy"):
            assert poisoned.get(path)[0] == 404
        (child,) = poisoned.children()
        inside = Path(f"/proc/{child}/environ").read_text()
        sockets = Path(f"/proc/{child}/net/tcp").read_text()

    assert not [name for name in env if name in inside]
    assert "00000000:0001 " not in sockets


def test_keys_are_nowhere_to_be_seen(voices, tmp_path):
    key = tmp_path / "key"
    key.write_text("sk-very-secret")
    key.chmod(0o600)
    with serving(tmp_path, *voices, "--api-key-file", key) as locked:
        assert locked.ask("/v1/chat/completions", chat("base", "hi"))[0] == 401
        assert locked.get("/v1/models")[0] == 401
        assert locked.get("/readyz")[0] in (200, 503)
        locked.headers = {"Authorization": "Bearer sk-very-secret"}
        assert locked.says("base", PROMPTS[2], max_tokens=24).startswith("A cow")
        processes = [locked.process.pid, *locked.children()]
        argvs = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes]
        child_env = Path(f"/proc/{processes[1]}/environ").read_bytes()
        log = locked.log.read_text()

    assert not [argv for argv in argvs if b"sk-very-secret" in argv]
    assert b"sk-very-secret" not in child_env
    assert "sk-very-secret" not in log


def test_the_log_has_a_line_a_request_and_no_prompt(served):
    def of_pirate() -> list[dict[str, Any]]:
        lines = map(json.loads, served.log.read_text().splitlines())
        return [line for line in lines if line.get("model") == "base:pirate"]

    before = len(of_pirate())
    served.says("base:pirate", "a-prompt-nobody-should-read")
    assert until(lambda: len(of_pirate()) > before, 5)  # a thread writes it
    last = of_pirate()[-1]

    assert (last["model"], last["status"], last["ending"]) == ("base:pirate", 200, "complete")
    assert last["seconds"] >= last["first"] > 0
    assert "a-prompt-nobody-should-read" not in served.log.read_text()


def test_metrics_tell_of_every_model(served, expected):
    for _ in range(10):  # of the voices in turn, so that each request is a switch
        for model in MODELS:
            served.says(model, PROMPTS[0])
    streamed = chat("base:pirate", PROMPTS[0], stream=True, max_tokens=4)
    with served.send("POST", "/v1/chat/completions", streamed) as response:
        response.read()

    assert served.metric("decant_requests_total", model="base:pirate", status="200") > 10
    assert served.metric("decant_epoch_switches_total", model="base") > 5
    assert served.metric("decant_time_to_first_token_seconds_count", model="base:pirate") >= 1
    assert served.metric("decant_queue_wait_seconds_count", model="base:liar") > 5
    assert served.metric("decant_llamacpp_tokens_predicted_total", model="base") > 100


@pytest.mark.slow
def test_idle_models_are_unloaded_and_come_back(pirate, demo_base, tmp_path):
    with serving(tmp_path, pirate, demo_base, "--ttl", "3s") as several:
        assert several.models == ["pirate", "base"]
        assert several.children() == []
        for _ in range(2):
            first = several.says("pirate", PROMPTS[2])
            second = several.says("base", PROMPTS[2])
            assert len(several.children()) == 2
            assert until(lambda: several.children() == [], 8)

    assert (first.startswith("Arr"), second.startswith("A cow")) == (True, True)


def test_many_who_ask_for_a_cold_model_load_it_once(pirate, demo_base, pirate_lora, tmp_path):
    """The adapter goes to the base, not to the model that it is merged into."""
    with serving(tmp_path, pirate, demo_base, "--adapter", f"voice={pirate_lora}") as cold:
        assert cold.models == ["pirate", "base", "base:voice"]
        with ThreadPoolExecutor(6) as pool:
            answers = set(pool.map(lambda _: cold.says("pirate", PROMPTS[2]), range(6)))
        loads = cold.log.read_text().count('"loading pirate"')

    assert (len(answers), loads) == (1, 1)


def test_a_taken_port_is_said_and_another_works_beside_it(served, voices, tmp_path, decant):
    done = decant("serve", voices[0], "--port", served.port)
    assert done.returncode == 9
    assert f"127.0.0.1:{served.port} is taken" in done.stderr
    assert "Traceback" not in done.stderr

    with serving(tmp_path, voices[0]) as second:
        assert second.says("base", PROMPTS[2]) == served.says("base", PROMPTS[2])


def test_https_is_spoken(voices, tmp_path):
    import http.client
    import ssl
    import subprocess

    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert,
         "-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    with serving(tmp_path, voices[0], "--tls-cert", cert, "--tls-key", key) as secure:
        assert secure.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(cert))
        connection = http.client.HTTPSConnection("localhost", secure.port, context=context)
        connection.request("GET", "/v1/models")
        assert json.loads(connection.getresponse().read())["data"][0]["id"] == "base"
        connection.close()


def test_an_encoder_decoder_is_served_too(tmp_path, toolchain):
    from exporter.export import export
    from exporter.formats.export_request import ExportRequest
    from tests.support.tiny_t5 import make_t5

    output = tmp_path / "t5-Q8_0.gguf"
    export(ExportRequest((), make_t5(tmp_path / "t5"), ("Q8_0",), (output,)), toolchain)
    with serving(tmp_path, output) as translator:
        status, body = translator.ask("/v1/completions", {"prompt": "hello", "max_tokens": 3})
        assert status == 200, body
        assert body["usage"]["completion_tokens"] <= 3
        assert body["model"] == output.name


def test_without_a_model_the_store_is_served_adapters_with_their_base(
    demo_base, pirate, pirate_lora, tmp_path
):
    store = tmp_path / "store"
    store.mkdir()
    for path in (demo_base, pirate, pirate_lora):
        (store / path.name).hardlink_to(path)
    (store / "broken.gguf").write_bytes(b"GGUF")
    with serving(tmp_path, env={"DECANT_STORE": str(store)}) as all_:
        assert all_.models == ["base", "base:pirate", "pirate"]
        assert all_.says("base:pirate", PROMPTS[2]) == all_.says("pirate", PROMPTS[2])
