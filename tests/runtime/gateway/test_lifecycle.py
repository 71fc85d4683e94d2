"""How a gateway begins, ends and is interrupted: nobody's answer is lost, nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from contextlib import closing

import pytest

from tests.runtime.conftest import PROMPTS
from tests.runtime.gateway.conftest import Served, asking, chat, serving, until, used
from tests.support.processes import is_alive
from tests.support.terminal import Terminal

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

GRACE_S = 2


@pytest.fixture
def ending(endless, tmp_path):
    """A gateway over a model that never stops, which grants two seconds at its end."""
    arguments = (endless, "--parallel", 2, "--ctx", 16384, "--grace", f"{GRACE_S}s")
    with serving(tmp_path, *arguments) as found:
        found.wait_until_ready()
        yield found


def read_all(connection: socket.socket) -> bytes:
    connection.settimeout(30)
    data = b""
    while block := connection.recv(1 << 16):
        data += block
    return data


def read_chunked(connection: socket.socket) -> bytes:
    """What is left of a chunked body, whose connection stays open."""
    connection.settimeout(30)
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        block = connection.recv(1 << 16)
        assert block, f"cut off after {data[-200:]!r}"
        data += block
    return data


def test_at_its_end_long_answers_are_cut_cleanly_and_short_ones_finish(ending):
    """A stream, an answer in one piece, and one that is done in time."""
    children = ending.children()
    long = chat("endless", "go", max_tokens=15000)
    with asking(ending, "/v1/chat/completions", {**long, "stream": True}) as stream:
        stream.recv(1)
        with asking(ending, "/v1/chat/completions", long) as whole:
            assert until(lambda: used(ending) == 2)
            with closing(ending.connect()) as probe:  # a balancer's, from before the end
                began = time.monotonic()
                ending.process.send_signal(signal.SIGTERM)
                assert until(lambda: ending.get("/readyz")[0] == 503, 2)
                assert ending.ask("/v1/chat/completions", long)[0] == 503
                assert ending.get("/livez")[0] == 200
                del probe
            streamed, at_once = read_all(stream), read_all(whole)
            assert until(lambda: ending.process.poll() is not None, GRACE_S + 10)
            took = time.monotonic() - began

    last = streamed.rstrip(b"\r\n0").rstrip().rpartition(b"data: ")[2]
    assert "shut down" in json.loads(last.partition(b"\n")[0])["error"]["message"]
    assert streamed.endswith(b"0\r\n\r\n")  # the end of a chunked body
    assert at_once.startswith(b"HTTP/1.1 503")
    assert b"shut down" in at_once
    assert took <= GRACE_S + 3
    assert ending.process.returncode == 0
    assert not [pid for pid in children if is_alive(pid)]


def test_what_is_done_in_time_is_complete(endless, tmp_path):
    body = chat("endless", "go", max_tokens=12, stream=True)
    with serving(tmp_path, endless, "--ctx", 1024, "--grace", "25s") as found:
        with asking(found, "/v1/chat/completions", body) as stream:
            stream.recv(1)
            found.process.send_signal(signal.SIGTERM)
            streamed = read_all(stream)

        assert b"data: [DONE]\n\n" in streamed
        assert until(lambda: found.process.poll() == 0, 5)


def test_a_second_ctrl_c_ends_at_once(ending):
    children = ending.children()
    with asking(ending, "/v1/chat/completions", chat("endless", "go", max_tokens=15000)):
        assert until(lambda: used(ending) == 1)
        ending.process.send_signal(signal.SIGINT)
        assert until(lambda: ending.get("/readyz")[0] == 503, 2)
        began = time.monotonic()
        ending.process.send_signal(signal.SIGINT)
        assert until(lambda: ending.process.poll() is not None, 5)

    assert time.monotonic() - began < 1.5
    assert ending.process.returncode == 130
    assert not [pid for pid in children if is_alive(pid)]


def test_killed_it_leaves_no_engine_behind(ending):
    (child,) = ending.children()
    with asking(ending, "/v1/chat/completions", chat("endless", "go", max_tokens=15000)):
        assert until(lambda: used(ending) == 1)
        ending.process.kill()

        assert until(lambda: not is_alive(child), 2)


def kill_child(served: Served) -> int:
    (child,) = served.children()
    os.kill(child, signal.SIGKILL)
    return child


def test_an_engine_that_dies_is_started_again_and_the_next_request_works(endless, tmp_path):
    with serving(tmp_path, endless, "--parallel", 2, "--ctx", 4096) as found:
        expected = found.says("endless", "hello", max_tokens=5)
        body = chat("endless", "go", max_tokens=4000)
        for rounds in (1, 2):
            with asking(found, "/v1/chat/completions", {**body, "stream": True}) as stream:
                stream.recv(1)
                with asking(found, "/v1/chat/completions", body) as whole:
                    assert until(lambda: used(found) == 2)
                    dead = kill_child(found)
                    at_once, streamed = whole.recv(1 << 16), read_chunked(stream)

            assert at_once.startswith(b"HTTP/1.1 503")
            assert b"retry-after" in at_once.lower()
            assert b'"error"' in streamed.rpartition(b"data: ")[2]
            assert found.says("endless", "hello", max_tokens=5) == expected
            assert found.metric("decant_child_restarts_total") == rounds
            assert dead not in found.children()
            assert used(found) == 0


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_said_not_tried_forever(pirate, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(pirate.read_bytes())
    with serving(tmp_path, pirate, broken) as found:
        data = bytearray(broken.read_bytes())
        place = data.index(b"blk.0.attn_q.weight")
        data[place : place + 5] = b"xxx.0"
        broken.write_bytes(data)
        statuses = [found.ask("/v1/chat/completions", chat("broken", "hi")) for _ in range(4)]
        loads = found.log.read_text().count('"loading broken"')

        assert [status for status, _ in statuses] == [503] * 4
        assert str(tmp_path) not in statuses[0][1]["error"]["message"]
        assert loads <= 4
        assert found.says("pirate", PROMPTS[2]).startswith("Arr")


def test_on_a_terminal_it_draws_a_table(pirate):
    with Terminal([sys.executable, "-m", "exporter", "serve", pirate, "--port", 0]) as terminal:
        terminal.until("decant serves on http://127.0.0.1:")
        terminal.until(r"SLOTS +WAITING")
        terminal.until("pirate +loaded +0/4")
        terminal.send("\x03")

        assert terminal.wait() == 0


def test_ended_while_it_begins_it_says_nothing_of_itself(demo_base, tmp_path):
    with serving(tmp_path, demo_base) as found:  # its address is told before it listens to signals
        found.process.send_signal(signal.SIGTERM)
        assert until(lambda: found.process.poll() is not None)

        assert found.process.returncode in (0, -signal.SIGTERM)
        assert "Traceback" not in found.log.read_text()
