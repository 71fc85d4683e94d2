"""docs/haproxy.cfg, run as it is: several gateways behind one address, one of which goes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from tests.runtime.conftest import PROMPTS
from tests.runtime.gateway.conftest import CHECKOUT, JSON, chat, serving, until

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

CONFIG = CHECKOUT / "docs" / "haproxy.cfg"
ROUTE = "/v1/chat/completions"
CLIENTS = 4


def haproxy() -> str:
    found = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    assert found, "this test runs Debian's haproxy: apt-get install --no-install-recommends haproxy"
    return found


def with_addresses(port: int, gateways: list[int]) -> str:
    """The example with our ports; everything else in it is tested as it stands."""
    text, binds = re.subn(r"(?m)^    bind :8080$", f"    bind 127.0.0.1:{port}", CONFIG.read_text())
    places = iter(gateways)
    text, servers = re.subn(
        r"(?m)^(    server \w+) 10\.0\.0\.\d+:8080$",
        lambda found: f"{found[1]} 127.0.0.1:{next(places)}",
        text,
    )
    assert (binds, servers) == (1, len(gateways))
    return text


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as trial:
        return trial.getsockname()[1]


@contextmanager
def balancing(folder: Path, gateways: list[int]):
    """The balancer's port."""
    port = free_port()
    config = folder / "haproxy.cfg"
    config.write_text(with_addresses(port, gateways))
    with (folder / "haproxy.log").open("w") as log:
        process = subprocess.Popen([haproxy(), "-db", "-f", config], stdout=log, stderr=log)
    try:
        assert until(lambda: answer(port)[0] == 200), (folder / "haproxy.log").read_text()
        yield port
    finally:
        process.kill()
        process.wait()


def answer(port: int, *, stream: bool = False, session: str = "", **settings) -> tuple[int, str]:
    """Status and body of one chat; (0, why) when there is none."""
    body = json.dumps(chat("base", PROMPTS[0], stream=stream, **settings))
    headers = JSON | ({"X-Session-Id": session} if session else {})
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", ROUTE, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, HTTPException) as error:
        return 0, repr(error)
    finally:
        connection.close()


def is_whole(status: int, text: str, *, stream: bool) -> bool:
    done = text.rstrip().endswith("data: [DONE]") if stream else '"finish_reason"' in text
    return status == 200 and done


def answers_of(gateway) -> float:
    return gateway.metric("decant_requests_total", route=ROUTE)


class Load:
    """Clients that ask on and on, streamed and not, until told to stop."""

    def __init__(self, port: int) -> None:
        self.port, self.over = port, threading.Event()
        self.lost: list[tuple[int, str]] = []
        self.count = Counter[bool]()
        self.threads = [threading.Thread(target=self.ask, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def ask(self, number: int) -> None:
        while not self.over.is_set():
            stream = (number + self.count.total()) % 2 == 0
            found = answer(self.port, stream=stream)
            self.count[stream] += 1
            if not is_whole(*found, stream=stream):
                self.lost.append(found)


def starter(folder: Path, demo_base: Path):
    """What starts a gateway over the demo's base, on a port of its own or a given one."""
    model = folder / "base.gguf"
    model.symlink_to(demo_base)

    def start(port: int = 0, linger: str = "3s"):
        options = ("--threads", 1, "--parallel", 2, "--linger", linger, "--port", port)
        return serving(folder, model, *options)

    return start


@contextmanager
def two_of(start):
    """Two gateways that are ready."""
    with start() as one, start() as two:
        one.wait_until_ready()
        two.wait_until_ready()
        yield one, two


@pytest.fixture
def pair(demo_base, tmp_path):
    """Two gateways that may be ended, and how to start another."""
    start = starter(tmp_path, demo_base)
    with two_of(start) as gateways:
        yield gateways, start


@pytest.fixture(scope="module")
def steady(demo_base, tmp_path_factory):
    """A balancer's port and the two gateways behind it. Leave them as they were."""
    folder = tmp_path_factory.mktemp("steady")
    with two_of(starter(folder, demo_base)) as gateways:
        with balancing(folder, [one.port for one in gateways]) as port:
            yield port, gateways


def test_one_of_two_gateways_is_drained_and_comes_back_and_no_answer_is_lost(pair, tmp_path):
    (one, two), start = pair
    with balancing(tmp_path, [one.port, two.port]) as port, Load(port) as load:
        assert until(lambda: answers_of(one) > 2 and answers_of(two) > 2)
        asked = time.monotonic()
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(30) == 0
        assert time.monotonic() - asked < 30  # its grace
        before = load.count.total()
        assert until(lambda: load.count.total() > before + 4 * CLIENTS)
        with start(one.port) as again:
            assert until(lambda: answers_of(again) > 2)
            load.__exit__()

    assert load.lost == []
    assert min(load.count[True], load.count[False]) > CLIENTS


def test_a_killed_gateway_costs_at_most_what_it_was_answering(pair, tmp_path):
    (one, two), _ = pair
    with balancing(tmp_path, [one.port, two.port]) as port, Load(port) as load:
        assert until(lambda: answers_of(one) > 2 and answers_of(two) > 2)
        one.process.kill()
        before = load.count.total()
        assert until(lambda: load.count.total() > before + 4 * CLIENTS)

    assert len(load.lost) <= CLIENTS
    # streams that broke off, and what was awaited whole; nothing that could have gone elsewhere
    assert all(status in (0, 200, 502) for status, _ in load.lost), load.lost


def test_a_stream_in_flight_is_finished_by_a_gateway_that_drains(pair, tmp_path):
    gateways, _ = pair
    with balancing(tmp_path, [one.port for one in gateways]) as port:
        before = [answers_of(one) for one in gateways]
        assert answer(port, session="mine")[0] == 200
        assert until(lambda: sum(map(answers_of, gateways)) > sum(before))
        mine = next(
            one for one, count in zip(gateways, before, strict=True) if answers_of(one) > count
        )
        body = chat("base", PROMPTS[0], stream=True, max_tokens=150, ignore_eos=True)
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", ROUTE, json.dumps(body), JSON | {"X-Session-Id": "mine"})
        response = connection.getresponse()
        first = response.readline()
        mine.process.send_signal(signal.SIGTERM)
        text = first.decode() + response.read().decode()
        connection.close()

        assert first.startswith(b"data: ")
        assert '"finish_reason":"length"' in text.replace(" ", "")
        assert is_whole(200, text, stream=True)
        assert mine.process.wait(10) == 0
        assert answer(port, session="mine")[0] == 200  # the other one goes on with it


def test_a_gateway_that_lingers_answers_but_balancers_send_it_no_more(pair, tmp_path):
    (_, other), start = pair
    with (
        start(linger="30s") as one,
        balancing(tmp_path, [one.port, other.port]) as port,
    ):
        assert until(lambda: answer(port)[0] == 200 and answers_of(one) > 0)
        one.process.send_signal(signal.SIGTERM)
        assert until(lambda: one.get("/readyz")[0] == 503)
        time.sleep(2)  # the balancer looks every second
        before = answers_of(one)
        assert [answer(port)[0] for _ in range(4)] == [200] * 4
        assert answers_of(one) == before
        assert answer(one.port)[0] == 200
        one.process.send_signal(signal.SIGTERM)  # whoever asks twice does not wait
        assert one.process.wait(5) == 128 + signal.SIGTERM


def test_a_conversation_stays_with_the_gateway_that_began_it(steady):
    port, gateways = steady
    for session in ("a", "b", "c"):
        before = [answers_of(one) for one in gateways]
        for _ in range(4):
            assert answer(port, session=session)[0] == 200
        assert until(lambda before=before: sum(map(answers_of, gateways)) >= sum(before) + 4)
        after = [answers_of(one) for one in gateways]
        assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0, 4]


def test_tokens_come_as_they_are_made(steady):
    port, _ = steady
    body = chat("base", PROMPTS[0], stream=True, max_tokens=400, ignore_eos=True)
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", ROUTE, json.dumps(body), JSON)
    response = connection.getresponse()
    pieces = list(iter(lambda: response.read1(1 << 20), b""))
    connection.close()

    assert b"".join(pieces).count(b"data: ") > 400
    assert len(pieces) > 10  # a buffer would hold them back and hand over a few
