"""A model computed by two workers says what it says at home, and workers may come and go."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from exporter.core.errors import EngineDiedError, SpaceError, WorkerError
from exporter.core.events import Warn
from exporter.core.gguf import read_gguf
from exporter.demo.train import ASSISTANT, USER
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.local import LocalEngine
from runtime.engine.lora_scales import lora_vector
from runtime.engine.memory_fit import FitOptions, fit
from runtime.engine.memory_need import LAYERS_KEPT
from runtime.engine.openai_client import Delta
from runtime.engine.opened_model import open_model
from runtime.engine.selection import AdapterSelection
from runtime.rpc.protocol import Spread, WorkerFacts
from runtime.rpc.relay import keep_alive
from runtime.rpc.worker import Worker
from tests.runtime.conftest import PROMPTS
from tests.support.processes import descendants, is_alive, wait_until
from tests.support.rpc_workers import LOOPBACK, said, spec, spread

VOICES = {"base": (0.0, 0.0), "pirate": (1.0, 0.0), "liar": (0.0, 1.0)}
llamacpp = pytest.mark.llamacpp
trained = pytest.mark.trained


@pytest.fixture(scope="module")
def workers(toolchain):
    with Worker(spec(), toolchain) as one, Worker(spec(), toolchain) as other:
        yield one, other


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
                with server.post("/completion", body | lora_vector(scales)) as response:
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
        engine = LocalEngine(open_model(pirate), FitOptions(threads=1, rpc=spread(*workers)))
        try:
            hello = [{"role": "user", "content": PROMPTS[0]}]
            pieces = engine.answer(hello, {"temperature": 0}, AdapterSelection())
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
            fit(header, (), FitOptions(), **small)
        away = [WorkerFacts("a:1", (1 << 30,))]

        assert fit(header, (), FitOptions(), **(small | {"free": (1 << 20) + sum(away[0].free)}))


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
