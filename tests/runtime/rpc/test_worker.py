"""A model computed by two workers says what it says at home, and workers may come and go."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from exporter.core.errors import (
    EngineDiedError,
    EngineError,
    InputError,
    SpaceError,
    UnsupportedError,
    WorkerError,
)
from exporter.core.events import Warn
from exporter.core.gguf import read_gguf
from exporter.demo.train import ASSISTANT, USER
from exporter.llamacpp.toolchain import Toolchain
from runtime.engine.llama_server import Server, ServerSpec, lora_vector
from runtime.engine.local import LocalEngine, Model, open_model
from runtime.engine.memory_fit import LAYERS_KEPT, Asked, Need, fit, layer_count, spread_over
from runtime.engine.openai_client import Delta, ask
from runtime.engine.selection import Choice
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
from runtime.rpc.relay import keep_alive
from runtime.rpc.rpc_server import RpcServer, RpcSpec
from runtime.rpc.worker import CONNECTIONS_MAX, Worker, WorkerSpec
from tests.conftest import CHECKOUT
from tests.runtime.conftest import PROMPTS, sockets_of
from tests.support.gguf_headers import llama
from tests.support.processes import descendants, is_alive, wait_until

LOOPBACK = "127.0.0.1"
VOICES = {"base": (0.0, 0.0), "pirate": (1.0, 0.0), "liar": (0.0, 1.0)}
ONE = RpcSpec(threads=1)
llamacpp = pytest.mark.llamacpp
trained = pytest.mark.trained


def spec(port: int = 0, rpc: RpcSpec = ONE, **more) -> WorkerSpec:
    return WorkerSpec(LOOPBACK, port, rpc, **more)


def address(worker) -> str:
    return f"{LOOPBACK}:{worker.port}"


def spread(*workers, **more) -> Spread:
    return Spread(tuple(address(worker) for worker in workers), **more)


def of_commit(toolchain, commit: str) -> Toolchain:
    """The same build, which says that it is of another commit."""
    build = SimpleNamespace(
        dir=toolchain.folder,
        tool=toolchain.tool,
        info={**toolchain.info, "commit": commit},
    )
    return Toolchain(build)


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


@pytest.fixture(scope="module")
def workers(toolchain):
    with Worker(spec(), toolchain) as one, Worker(spec(), toolchain) as other:
        yield one, other


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
    with pytest.raises(InputError, match="is no HOST:PORT"):
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

    with pytest.raises(UnsupportedError, match="no worker computes"):
        LocalEngine(model, Asked(rpc=Spread(("127.0.0.1:1",))))


@llamacpp
@trained
class TestAnswers:
    """Greedy answers of a model whose layers lie with two workers."""

    @staticmethod
    def server(demo_base, adapters, toolchain, rpc: Spread | None) -> Server:
        return Server(ServerSpec(demo_base, 256, 2, adapters=adapters, rpc=rpc), toolchain)

    @staticmethod
    def answers(server: Server) -> dict[tuple[str, str], list[int]]:
        found = {}
        for voice, scales in VOICES.items():
            for prompt in PROMPTS:
                # in the chat's form, in which each voice has a lead that its training made
                asked = f"{USER}{prompt}</s>{ASSISTANT}"
                body = {"prompt": asked, "n_predict": 16, "temperature": 0, "return_tokens": True}
                with server.posted("/completion", body | lora_vector(scales)) as response:
                    found[voice, prompt] = json.loads(response.read())["tokens"]
        return found

    def test_they_are_token_for_token_those_of_home(
        self, workers, demo_base, pirate_lora, liar_lora, toolchain
    ):
        adapters = (pirate_lora, liar_lora)
        with self.server(demo_base, adapters, toolchain, None) as server:
            expected = self.answers(server)
        with self.server(demo_base, adapters, toolchain, spread(*workers)) as server:
            found = self.answers(server)
            log = server.run_folder.log.read_text()

        assert all(expected.values())
        assert found == expected
        for prompt in PROMPTS:
            assert len({tuple(expected[voice, prompt]) for voice in VOICES}) == len(VOICES)
        assert log

    def test_several_models_share_a_worker(self, workers, demo_base, pirate, toolchain):
        with ExitStack() as stack:
            servers = [
                stack.enter_context(self.server(model, (), toolchain, spread(workers[0])))
                for model in (demo_base, pirate, demo_base)
            ]
            texts = [said(server) for server in servers]

        assert texts[0] == texts[2] != texts[1]

    def test_a_part_of_the_layers_may_stay_here(self, workers, pirate, toolchain):
        with self.server(pirate, (), toolchain, None) as server:
            expected = said(server)
        with self.server(pirate, (), toolchain, spread(workers[0], layers=1)) as server:
            assert said(server) == expected

    def test_the_engine_of_the_chat_takes_workers_too(self, workers, pirate):
        engine = LocalEngine(open_model(pirate), Asked(threads=1, rpc=spread(*workers)))
        try:
            hello = [{"role": "user", "content": PROMPTS[0]}]
            pieces = engine.answer(hello, {"temperature": 0}, Choice())
            text = "".join(piece.text for piece in pieces if isinstance(piece, Delta))
            argv = Path(f"/proc/{engine.server.process.pid}/cmdline").read_bytes().split(b"\0")
        finally:
            engine.stop()

        assert text.startswith("Arr")
        assert argv[argv.index(b"--rpc") + 1].decode() == ",".join(spread(*workers).workers)
        assert argv[argv.index(b"--cache-ram") + 1] == b"0"

    def test_a_model_too_large_for_here_is_not_refused(self, pirate):
        header = read_gguf(pirate, keep_items=LAYERS_KEPT)
        small = {"free": 1 << 20, "cores": 1, "backend": "cpu"}
        with pytest.raises(SpaceError):
            fit(header, (), Asked(), **small)
        away = [WorkerFacts("a:1", (1 << 30,))]

        assert fit(header, (), Asked(), **(small | {"free": (1 << 20) + sum(away[0].free)}))


def said(server: Server) -> str:
    pieces = ask(server, [{"role": "user", "content": PROMPTS[0]}], {"temperature": 0})
    return "".join(piece.text for piece in pieces if isinstance(piece, Delta))


@llamacpp
@trained
class TestDeath:
    """Of a worker, and of what it has started."""

    def test_a_dead_worker_takes_the_engine_along_until_it_is_back(self, pirate, toolchain):
        with Worker(spec(), toolchain) as worker:
            port = worker.port
            with Server(ServerSpec(pirate, 256, 1, rpc=spread(worker)), toolchain) as server:
                before = said(server)
                worker.stop()
                with pytest.raises(EngineDiedError):
                    said(server)
        with pytest.raises(WorkerError, match="no worker answers"):
            Server(ServerSpec(pirate, 256, 1, rpc=spread(worker_at(port))), toolchain).__enter__()
        with Worker(spec(port), toolchain) as worker:
            with Server(ServerSpec(pirate, 256, 1, rpc=spread(worker)), toolchain) as server:
                assert said(server) == before

    def test_an_rpc_server_that_crashes_is_told_of_and_replaced(self, pirate, toolchain):
        told = []
        with Worker(spec(), toolchain, report=told.append) as worker:
            for _ in range(2):
                with Server(ServerSpec(pirate, 256, 1, rpc=spread(worker)), toolchain) as server:
                    assert said(server)
                    (busy,) = [one for one in worker.servers.all if one is not worker.servers.idle]
                    os.kill(descendants(busy.process.pid)[0], signal.SIGKILL)
                    with pytest.raises(EngineDiedError):
                        said(server)
            assert wait_until(lambda: len(told) == 2)

        assert all(isinstance(event, Warn) and "has ended" in event.message for event in told)

    def test_a_head_that_leaves_gives_its_server_back(self, pirate, toolchain):
        with Worker(spec(), toolchain) as worker:
            for _ in range(2):
                with Server(ServerSpec(pirate, 256, 1, rpc=spread(worker)), toolchain):
                    pass
            assert wait_until(lambda: worker.servers.idle is not None)
            assert wait_until(lambda: len(worker.servers.all) == 1)

    def test_nothing_is_left_of_a_worker_that_stopped(self, toolchain):
        with Worker(spec(), toolchain) as worker:
            (one,) = worker.servers.all
            pids = [one.process.pid, *descendants(one.process.pid)]
            folder, port = one.folder.path, worker.port
            assert len(pids) == 2

        assert wait_until(lambda: not any(map(is_alive, pids)))
        assert not folder.exists()
        with socket.create_server((LOOPBACK, port)):
            pass


def worker_at(port: int) -> SimpleNamespace:
    return SimpleNamespace(port=port)


def has_room(worker: Worker) -> bool:
    return worker.room.acquire(blocking=False) and worker.room.release() is None


def test_a_head_that_vanishes_is_noticed():
    with socket.create_server((LOOPBACK, 0)) as listener:
        with socket.create_connection(listener.getsockname()) as connection:
            keep_alive(connection)

            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, interval, count = (
                connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{name}"))
                for name in ("IDLE", "INTVL", "CNT")
            )
            assert idle + interval * count <= 120


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


@llamacpp
class TestCommand:
    """`decant worker` as a user runs it."""

    @contextmanager
    def running(self, *arguments, **env):
        argv = [sys.executable, "-m", "exporter", "worker", "--port", "0", *arguments]
        with subprocess.Popen(
            argv, cwd=CHECKOUT, env={**os.environ, **env}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            try:
                host, _, port = process.stdout.readline().strip().partition(":")
                yield process, SimpleNamespace(host=host, port=int(port))
            finally:
                process.kill()

    @pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
    def test_it_ends_well_and_leaves_nothing(self, sign):
        with self.running() as (process, _):
            started = descendants(process.pid)
            process.send_signal(sign)
            assert process.wait(5) == 0
            said = process.stderr.read()

        assert len(started) == 2
        assert not any(map(is_alive, started))
        assert "decant serve MODEL --rpc 127.0.0.1:" in said
        assert "no key" in said

    def test_killed_it_leaves_nothing_either(self, toolchain, pirate):
        with self.running("--quiet") as (process, worker):
            with Server(ServerSpec(pirate, 256, 1, rpc=spread(worker)), toolchain) as server:
                started = descendants(process.pid)
                process.kill()
                process.wait()
                assert wait_until(lambda: not any(map(is_alive, started)), 2)
                with pytest.raises(EngineDiedError):
                    said(server)

        assert len(started) >= 2

    def test_it_listens_nowhere_but_on_the_loopback(self):
        with self.running() as (process, worker):
            pids = [process.pid, *descendants(process.pid)]
            places = set().union(*map(sockets_of, pids))

        assert f"0100007F:{worker.port:04X}" in places
        assert len(places) == 2  # its own, and the rpc-server's
        assert all(place.startswith("0100007F:") for place in places)

    def test_a_poisoned_environment_changes_nothing(self, tmp_path, toolchain):
        poison = {
            "LLAMA_CACHE": str(tmp_path / "cache"), "LLAMA_ARG_HOST": "0.0.0.0",
            "LLAMA_ARG_PORT": "1", "LD_PRELOAD": "", "PYTHONPATH": str(tmp_path),
            "PYTHONSTARTUP": str(tmp_path / "x.py"),
        }  # fmt: skip
        (tmp_path / "threading.py").write_text("raise SystemExit('poisoned')")
        guarded = {name: value for name, value in poison.items() if name != "PYTHONPATH"}
        with self.running(**guarded) as (process, worker):
            env = Path(f"/proc/{descendants(process.pid)[-1]}/environ").read_text()
            assert read_answer(address(worker))["commit"] == toolchain.info["commit"]

        assert "LLAMA_ARG" not in env
        assert "PYTHON" not in env
        assert not (tmp_path / "cache").exists()

    def test_an_open_host_needs_a_word_and_warns(self, decant):
        refused = decant("worker", "--host", "0.0.0.0", "--port", "0")
        assert refused.returncode == 3
        assert "--i-know" in refused.stderr
        with self.running("--host", "0.0.0.0", "--i-know", "--quiet") as (process, worker):
            assert worker.host == "0.0.0.0"
            process.terminate()
            assert "warning: the RPC protocol has no key" in process.stderr.read()

    def test_weights_are_kept_only_when_asked(self, toolchain, tmp_path):
        def kept(rpc: RpcSpec) -> str:
            with Worker(spec(rpc=rpc), toolchain) as worker:
                log = worker.servers.idle.folder.log.read_text()
                return log.partition("local cache")[2].splitlines()[0].strip(" :")

        assert kept(ONE) == "n/a"
        assert kept(replace(ONE, cache=tmp_path)) == str(tmp_path / "rpc")
