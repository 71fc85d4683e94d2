"""What is known of a worker before a model is loaded: its address, its llama.cpp, its room."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest

from exporter.core.errors import EngineError, InputError, UnsupportedError, WorkerError
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.local import LocalEngine
from runtime.engine.memory_fit import FitOptions, spread_over
from runtime.engine.memory_need import Need, layer_count
from runtime.engine.opened_model import Model
from runtime.rpc import rpc_server
from runtime.rpc import worker as worker_module
from runtime.rpc.protocol import (
    ALL_LAYERS,
    ASK,
    Spread,
    WorkerFacts,
    parse_workers,
    preflight,
    protocol_version,
    read_answer,
    rpc_flags,
)
from runtime.rpc.rpc_server import RpcServer
from runtime.rpc.worker import CONNECTIONS_MAX, Worker, WorkerSpec
from tests.support.gguf_headers import llama
from tests.support.processes import wait_until
from tests.support.rpc_workers import LOOPBACK, ONE, address, of_commit, said, spec, spread

llamacpp = pytest.mark.llamacpp
trained = pytest.mark.trained


@contextmanager
def listening(answer):
    """Something else on a port, which does `answer` with each connection."""
    with socket.create_server((LOOPBACK, 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield SimpleNamespace(port=listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


# What needs no llama.cpp.


def test_workers_are_named_by_host_and_port():
    assert parse_workers("127.0.0.1:50052, gpu-box.lan:50053") == (
        "127.0.0.1:50052",
        "gpu-box.lan:50053",
    )


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":1", "host:0", "host:65536", "[::1]:5", "a:1,,b:2", "-x:1",
             "a b:1", "host:1:2", "h:1 --x"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text):
    with pytest.raises(InputError, match="is not HOST:PORT"):
        parse_workers(text)


def test_a_worker_is_named_once():
    with pytest.raises(InputError, match="twice"):
        parse_workers("a:1,b:1,a:01")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "worker.example"])
def test_a_worker_that_others_reach_is_refused_unless_one_knows(host, toolchain):
    with pytest.raises(InputError, match="no key") as caught:
        Worker(WorkerSpec(host, 0, ONE), toolchain)

    assert "--i-know" in caught.value.hint
    Worker(WorkerSpec(host, 0, ONE, exposed=True), toolchain)


def test_a_public_address_is_refused_before_it_is_asked(toolchain):
    with pytest.raises(WorkerError, match="public address") as caught:
        preflight(Spread(("8.8.8.8:50052",)), toolchain)

    assert "ssh -N -L 50052:127.0.0.1:50052 8.8.8.8" in caught.value.hint


def test_a_worker_that_is_not_there_is_named(toolchain):
    with socket.create_server((LOOPBACK, 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(WorkerError, match=f"no worker answers at {LOOPBACK}:{port}"):
        preflight(Spread((f"{LOOPBACK}:{port}",)), toolchain)


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"{", b"[]\n", b"\xff\n", b"{}" + b" " * (1 << 17)],
)
def test_a_stranger_on_the_port_is_refused(answer, toolchain):
    with listening(lambda connection: connection.sendall(answer)) as stranger:
        with pytest.raises(WorkerError, match=r"does not say which|runs llama\.cpp None"):
            preflight(spread(stranger), toolchain)


def test_the_workers_get_all_the_layers_that_they_have_room_for(tmp_path):
    model, need = llama(tmp_path / "m.gguf"), Need(100 << 20, 0, 0)

    def over(*free: int, backend: str = "cpu") -> Spread:
        return spread_over(Spread(("a:1",)), [WorkerFacts("a:1", free)], model, need, backend)

    assert over(200 << 20).layers == ALL_LAYERS
    assert over(50 << 20).layers == int((layer_count(model) + 1) * 0.45)
    assert over(0).layers == 0
    assert over(30 << 20, 90 << 20).shares == (30, 90)
    assert over(30 << 20, backend="cuda") == Spread(("a:1",))
    assert rpc_flags(over(30 << 20, 90 << 20))[-2:] == ["-ts", "30,90"]


def test_an_encoder_decoder_is_refused(tmp_path):
    model = Model(llama(tmp_path / "m.gguf", **{"general.architecture": "t5"}))

    with pytest.raises(UnsupportedError, match="which workers cannot compute"):
        LocalEngine(model, FitOptions(rpc=Spread(("127.0.0.1:1",))))


def has_room(worker: Worker) -> bool:
    return worker.room.acquire(blocking=False) and worker.room.release() is None


@llamacpp
class TestHandshake:
    """What is asked before a model is loaded."""

    def test_a_worker_of_the_same_llama_cpp_is_taken(self, toolchain):
        with Worker(spec(), toolchain) as worker:
            (facts,) = preflight(spread(worker), toolchain)
            assert facts.address == address(worker)

        assert len(facts.free) == 1
        assert facts.free[0] > 1 << 20

    def test_another_llama_cpp_is_refused_with_both_commits(self, toolchain):
        with Worker(spec(), of_commit(toolchain, "feedbeef0")) as worker:
            with pytest.raises(WorkerError) as caught:
                preflight(spread(worker), toolchain)

            assert "feedbeef0" in caught.value.message
            assert toolchain.info["commit"] in caught.value.message
            assert preflight(spread(worker, unchecked=True), toolchain)

    def test_another_version_of_the_protocol_is_refused_even_unchecked(self, toolchain):
        def older(connection):
            connection.recv(64)
            connection.sendall((28).to_bytes(8, "little") + bytes([6, 1, 0]) + bytes(25))
            connection.recv(64)
            connection.sendall((4).to_bytes(8, "little") + bytes(4))

        with listening(older) as worker:
            with pytest.raises(WorkerError, match=r"speaks version 6\.1\.0"):
                preflight(spread(worker, unchecked=True), toolchain)

    def test_a_bare_rpc_server_is_refused_and_taken_when_unchecked(self, pirate, toolchain):
        bare = RpcServer(ONE, toolchain)
        try:
            bare.connect().close()
            with pytest.raises(WorkerError, match="does not say which llama"):
                preflight(spread(bare), toolchain)
            (facts,) = preflight(spread(bare, unchecked=True), toolchain)
            rpc = spread(bare, unchecked=True)
            with Server(ServerSpec(pirate, 256, 1, rpc=rpc), toolchain) as server:
                assert said(server)
        finally:
            bare.stop()

        assert facts.free

    def test_the_protocols_version_is_read_off_our_own_header(self, toolchain):
        assert protocol_version(toolchain).count(".") == 2

    def test_what_is_no_head_starts_nothing_and_hurts_nobody(self, toolchain):
        told = []
        with Worker(spec(), toolchain, report=told.append) as worker:
            for raw in (b"GET / HTTP/1.1\r\n\r\n", b"", b"\x0e", b"\x0e" + b"\xff" * 8, ASK[:3]):
                with socket.create_connection((LOOPBACK, worker.port)) as stranger:
                    stranger.sendall(raw)
            with socket.create_connection((LOOPBACK, worker.port), timeout=5) as browser:
                browser.sendall(b"P")
                assert browser.recv(10) == b""
            assert read_answer(address(worker))["commit"]
            assert len(worker.servers.all) == 1

        assert told == []

    def test_a_stranger_on_the_port_of_an_rpc_server_is_never_talked_to(
        self, toolchain, monkeypatch
    ):
        with listening(lambda connection: connection.recv(64)) as stranger:
            monkeypatch.setattr(rpc_server, "free_port", lambda: stranger.port)
            server = RpcServer(ONE, toolchain)
            with pytest.raises(WorkerError, match="does not run"):
                server.connect()
            server.stop()

    def test_connections_that_say_nothing_are_few_and_short(self, toolchain, monkeypatch):
        monkeypatch.setattr(worker_module, "FIRST_BYTES_S", 1)
        told = []
        with Worker(spec(), toolchain, report=told.append) as worker, ExitStack() as stack:
            for _ in range(CONNECTIONS_MAX):
                stack.enter_context(socket.create_connection((LOOPBACK, worker.port)))
            one_more = socket.create_connection((LOOPBACK, worker.port), timeout=5)
            assert stack.enter_context(one_more).recv(1) == b""
            assert wait_until(lambda: len(told) == 1)
            assert wait_until(lambda: has_room(worker))
            assert read_answer(address(worker))["commit"]

    def test_a_port_that_is_taken_is_told_with_a_way_out(self, toolchain):
        with socket.create_server((LOOPBACK, 0)) as taken:
            with pytest.raises(EngineError, match="cannot listen") as caught:
                Worker(spec(taken.getsockname()[1]), toolchain).__enter__()

        assert "--port" in caught.value.hint
