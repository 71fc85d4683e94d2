"""What is around requests: connections, files, whoever reads the log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.core.events import Event
from runtime.engine.opened_model import open_model
from runtime.gateway.asgi_app import build_app
from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog
from runtime.gateway.fault_log import Faults, listened
from runtime.gateway.log_writer import Writer
from runtime.gateway.request_limits import Limits
from runtime.gateway.request_log import Lines
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.server import Tls, Ways, connections_max, listening, serve
from runtime.gateway.settings import Settings
from tests.runtime.gateway.conftest import serving, until
from tests.support.fake_engine import toolchain
from tests.support.raw import write_tiny_gguf

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


def livez(port: int) -> bytes:
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), 5)) as connection:
        connection.sendall(LIVEZ)
        return connection.recv(1 << 12)


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True


def served_here(folder: Path, ways: Ways, act: Callable[[int], None], **settings: Any) -> None:
    """Have a gateway over a fake engine in this process, and do something with its port."""
    given = Settings(**settings)
    model = open_model(write_tiny_gguf(folder / "m.gguf"))
    gateway = Gateway(given, Catalog([model]), EnginePool(given, toolchain(folder)))

    async def run() -> None:
        with listening("127.0.0.1", 0) as listener:
            work = asyncio.ensure_future(serve(gateway, build_app(gateway), listener, ways))
            await asyncio.sleep(0.2)
            await asyncio.to_thread(act, listener.getsockname()[1])
            work.cancel()
            await asyncio.wait({work})

    asyncio.run(run())


def make_cert(folder: Path) -> Path:
    """A file with a key and its certificate."""
    cert = folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", cert, "-out",
         folder / "public.pem", "-days", "1", "-subj", "/CN=localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    cert.write_bytes(cert.read_bytes() + (folder / "public.pem").read_bytes())
    return cert


@pytest.mark.lasting
def test_handshakes_that_do_not_come_are_not_waited_for(tmp_path):
    """Nobody has counted their connections by then."""
    cert = make_cert(tmp_path)
    took: list[float] = []

    def stall(port: int) -> None:
        began = time.monotonic()
        with contextlib.closing(socket.create_connection(("127.0.0.1", port), 20)) as connection:
            assert connection.recv(1) == b""
        took.append(time.monotonic() - began)

    served_here(tmp_path, Ways(Tls(cert, None)), stall, head_s=0.3)
    assert took[0] < 10


@pytest.mark.lasting
@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio has no limit before")
def test_a_tls_client_that_is_silent_after_its_handshake_is_closed_without_its_consent(tmp_path):
    """The end of TLS is announced; asyncio would wait 30 seconds for the client's answer."""
    cert = make_cert(tmp_path)
    took: list[float] = []

    def stall(port: int) -> None:
        before, began = open_sockets(), time.monotonic()
        context = ssl._create_unverified_context()
        raw = socket.create_connection(("127.0.0.1", port), 20)
        with context.wrap_socket(raw, server_hostname="localhost"):
            assert until(lambda: open_sockets() == before + 1, 20)  # the client's end
            took.append(time.monotonic() - began)

    served_here(tmp_path, Ways(Tls(cert, None)), stall, head_s=0.3)
    assert took[0] < 10


@pytest.mark.slow
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_reads_a_byte_at_a_time_is_cut_off(is_stream, tmp_path):
    """Its connection is closed at once, and not when it has read what is left."""
    size = 12 << 20
    body = {"model": "m", "prompt": "x " * (size // 2), "stream": is_stream}
    took: list[float] = []

    def read_slowly(port: int) -> None:
        before = open_sockets()
        with contextlib.closing(socket.socket()) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.connect(("127.0.0.1", port))
            text = json.dumps(body).encode()
            head = (
                "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
            )
            connection.sendall(head.encode() + text)
            assert connection.recv(1) == b"H"
            began = time.monotonic()

            def is_cut() -> bool:
                with contextlib.suppress(OSError):  # it is reset
                    connection.recv(1)
                return open_sockets() <= before + 1

            assert until(is_cut, 20)
            took.append(time.monotonic() - began)

    limits = Limits(body=2 * size)
    served_here(tmp_path, Ways(), read_slowly, stall_s=1, limits=limits)
    assert took[0] < 10


def open_sockets() -> int:
    """The connections over TCP that this process holds."""
    with contextlib.suppress(OSError):
        inodes = {
            line.split()[9] for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]
        }
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # it is just being closed
            links.append(str(fd.readlink()))
    return sum(link[8:-1] in inodes for link in links if link.startswith("socket:"))


@pytest.mark.lasting
def test_idle_connections_make_room_for_new_ones(tmp_path):
    """The longest idle goes first."""
    found: list[object] = []

    def attack(port: int) -> None:
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
        found.append(livez(port)[:15])
        time.sleep(0.2)
        found.append([is_open(connection) for connection in idle].count(True))
        found.append(is_open(idle[0]))
        for connection in idle:
            connection.close()

    served_here(tmp_path, Ways(connections=5), attack)
    assert found[0] == b"HTTP/1.1 200 OK"
    assert 0 < found[1] <= 5
    assert found[2] is False


def test_there_are_fewer_connections_than_files(monkeypatch):
    for soft, most in ((64, 12), (1024, 492), (16, 8)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert connections_max() == most


@pytest.mark.llamacpp
@pytest.mark.skipif(sys.platform != "linux", reason="no other process has its limits changed")
def test_a_server_out_of_files_says_so_in_few_lines_and_answers_again(tmp_path):
    """More connections than files, which it learns of only when it has begun."""
    with serving(tmp_path, write_tiny_gguf(tmp_path / "m.gguf")) as served:
        served.wait_until_ready()
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (40, 40))
        idle = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(100)]
        time.sleep(2)
        for connection in idle:
            connection.close()
        assert until(lambda: served.get("/livez")[0] == 200)
        lines = served.log.read_text().splitlines()

    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert sum("Too many open files" in line for line in lines) in (1, 2)
    assert len("\n".join(lines)) < 20_000


def test_a_reader_of_the_log_that_stops_holds_nobody_up():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as out:
        lines = Lines(out, room=50)
        began = time.monotonic()
        for number in range(5000):  # a pipe holds some 600 of them
            lines.request({"number": number, "padding": "x" * 80})
        assert time.monotonic() - began < 5

        with os.fdopen(reading) as log:
            closing = threading.Thread(target=lines.close)
            closing.start()
            read = [log.readline() for _ in range(20)]
            found = [json.loads(line) for line in read]
            while found[-1].get("number") != 4999:
                found.append(json.loads(log.readline()))
            closing.join()

    dropped = sum(one["count"] for one in found if one["event"] == "dropped")
    assert dropped + sum(one["event"] == "request" for one in found) == 5000
    assert dropped > 0


@pytest.mark.lasting
def test_at_the_end_what_is_left_is_written_unless_nobody_reads():
    written: list[int] = []
    writer: Writer[int] = Writer(lambda item, _: written.append(item), 10)
    for number in range(10):
        writer.put(number)
    writer.close()
    assert written == list(range(10))

    forever = threading.Event()
    stuck: Writer[int] = Writer(lambda *_: forever.wait(), 10)
    stuck.put(1)
    began = time.monotonic()
    stuck.close()
    assert time.monotonic() - began < 4
    forever.set()


def test_what_libraries_say_is_told_once_in_a_while():
    told: list[Event] = []
    now = [0.0]
    faults = Faults(told.append, lambda: now[0])
    with listened(faults):
        for _ in range(1000):
            logging.getLogger("asyncio").warning("socket.send() raised exception.")
        logging.getLogger("asyncio").info("nothing")
        try:
            {}["strange"]
        except KeyError:
            logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
        now[0] = 11
        logging.getLogger("asyncio").warning("socket.send() raised exception.")
    messages = [event.message for event in told]

    assert messages[0] == "asyncio: socket.send() raised exception."
    assert messages[1].startswith("uvicorn.error: Exception in ASGI application: Traceback")
    assert messages[1].endswith("KeyError: 'strange'")
    assert messages[2:] == ["asyncio: socket.send() raised exception. (999 more like it before)"]


def test_a_second_interrupt_is_no_fault():
    told: list[Event] = []
    with listened(Faults(told.append)):
        trace = "".join(traceback.format_exception(asyncio.CancelledError()))
        logging.getLogger("uvicorn.error").error(trace)

    assert told == []


def test_faults_of_a_loop_are_told_alike():
    told: list[Event] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(Faults(told.append).of_loop)
        for _ in range(50):
            error = OSError(24, "Too many open files")
            loop.call_exception_handler({"message": "accept failed", "exception": error})

    with warnings.catch_warnings():
        asyncio.run(run())
    assert [event.message for event in told] == [
        "accept failed: OSError: [Errno 24] Too many open files"
    ]


def test_no_wait_is_measured_by_a_clock_that_may_be_set():
    """NTP and people set the wall clock: only stamps for people and clients come from it."""
    folder = Path(__file__).parents[3] / "runtime" / "gateway"
    found = {
        path.name
        for path in folder.rglob("*.py")
        if re.search(r"\btime\.time(?:_ns)?\b|datetime\.now", path.read_text())
    }

    assert found == {"ollama_routes.py", "ollama_response.py", "request_log.py"}
