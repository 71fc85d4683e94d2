"""The engine's process: where it listens, how it ends, what it leaves."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from urllib.request import Request, urlopen

import pytest

from exporter.core.errors import ContextFullError, EngineDiedError, EngineError
from exporter.core.events import Progress
from exporter.llamacpp.toolchain import find_toolchain
from runtime.engine.llama_server import SPINS, Server, ServerSpec
from runtime.engine.local import LocalEngine
from runtime.engine.memory_fit import FitOptions
from runtime.engine.memory_need import BATCH
from runtime.engine.openai_client import Delta, ask
from runtime.engine.opened_model import open_model
from runtime.engine.selection import AdapterSelection
from runtime.process.run_dir import OWNER, PREFIX, RunFolder, sweep
from tests.runtime.conftest import ANSWER, QUESTION, sockets_of
from tests.support.processes import is_alive

HELLO = [{"role": "user", "content": QUESTION}]
GREEDY = {"temperature": 0}


def text_of(pieces) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Delta))


def test_a_folder_whose_owner_was_killed_is_swept_away(tmp_path):
    code = """
import os, signal, tempfile, sys
tempfile.tempdir = sys.argv[1]
from runtime.process.run_dir import RunFolder
folder = RunFolder()
(folder.path / "log").write_text("x")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    sweep(tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_not_swept_away(tmp_path):
    used = tmp_path / f"{PREFIX}x"
    used.mkdir()
    with (used / OWNER).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sweep(tmp_path)
        assert used.exists()
    sweep(tmp_path)

    assert not used.exists()


def test_a_run_folder_is_gone_when_it_is_removed():
    folder = RunFolder()
    assert folder.path.exists()
    folder.remove()

    assert not folder.path.exists()


@pytest.mark.llamacpp
@pytest.mark.trained
class TestWithAModel:
    """With a real one."""

    def test_without_sockets_it_listens_on_the_loopback_and_wants_a_key(self, pirate, toolchain):
        spec = ServerSpec(pirate, 256, threads=2, use_socket=False)
        with Server(spec, toolchain) as server:
            assert server.port
            assert text_of(ask(server, HELLO, GREEDY)) == ANSWER
            key, server.key = server.key, "another"
            with pytest.raises(EngineError, match="401"):
                list(ask(server, HELLO, GREEDY))
            assert key not in Path(f"/proc/{server.process.pid}/cmdline").read_text()
            sockets = Path(f"/proc/{server.process.pid}/net/tcp").read_text()
            assert f"0100007F:{server.port:04X}" in sockets

    def test_with_sockets_it_listens_nowhere_else(self, pirate, toolchain):
        with Server(ServerSpec(pirate, 256, threads=2), toolchain) as server:
            listening = sockets_of(server.process.pid)

        assert listening == set()

    def test_loading_is_told_in_bytes(self, pirate, toolchain):
        told = []
        with Server(ServerSpec(pirate, 256, threads=2), toolchain, report=told.append):
            pass
        last = [event for event in told if isinstance(event, Progress)][-1]

        assert last.done == last.total == pirate.stat().st_size

    def test_stopping_lets_an_answer_in_flight_finish(self, pirate, toolchain):
        with Server(ServerSpec(pirate, 256, threads=2), toolchain) as server:
            pieces = ask(server, HELLO, GREEDY)
            begun = text_of([next(pieces)])
            rest: list[str] = []
            reader = threading.Thread(target=lambda: rest.append(text_of(pieces)))
            reader.start()
            server.stop(grace_s=10)
            reader.join()

        assert begun + rest[0] == ANSWER

    def test_stopping_without_grace_is_quick_however_long_the_answer_is(self, endless, toolchain):
        with Server(ServerSpec(endless, 32768, threads=2), toolchain) as server:
            pieces = ask(server, HELLO, GREEDY)
            next(pieces)
            pid = server.process.pid
            began = time.monotonic()
            server.stop()

        assert not is_alive(pid)
        assert time.monotonic() - began < 4

    def test_an_idle_engine_is_gone_at_once(self, pirate, toolchain):
        with Server(ServerSpec(pirate, 256, threads=2), toolchain) as server:
            pid = server.process.pid
            began = time.monotonic()
            server.stop()

        assert not is_alive(pid)
        assert time.monotonic() - began < 0.7  # a SIGTERM alone would be sat out for a second

    def test_leaving_an_answer_frees_the_engine(self, endless, toolchain):
        with Server(ServerSpec(endless, 32768, threads=2), toolchain) as server:
            pieces = ask(server, HELLO, GREEDY)
            next(pieces)
            pieces.close()
            began = time.monotonic()
            list(ask(server, HELLO, {"max_tokens": 1}))

        assert time.monotonic() - began < 3

    def test_an_engine_that_died_is_typed_and_starts_again(self, endless):
        engine = LocalEngine(open_model(endless), FitOptions(threads=2))
        short = {**GREEDY, "max_tokens": 3}
        try:
            first = engine.start()
            first.process.kill()
            first.process.wait()
            assert len(list(engine.answer(HELLO, short, AdapterSelection()))) > 1
            assert engine.server is not first
            pieces = engine.answer(HELLO, GREEDY, AdapterSelection())
            next(pieces)
            engine.server.process.kill()
            with pytest.raises(EngineDiedError, match="SIGKILL"):
                list(pieces)
        finally:
            engine.stop()

    def test_a_request_does_not_wait_for_copies_of_idle_slots(self, pirate, toolchain):
        spec = ServerSpec(
            pirate, 256, 1, parallel=2, prompt_cache=64 << 20, extra=("--log-verbosity", "5")
        )
        with Server(spec, toolchain) as server:
            for slot in (0, 1):
                settings = {**GREEDY, "max_tokens": 2, "id_slot": slot}
                assert text_of(ask(server, HELLO, settings))
            log = server.run_folder.log.read_text(errors="replace")
        assert "prompt cache is enabled" in log
        assert "saving idle slot" not in log

    def test_a_long_prompt_is_computed_in_steps_between_which_others_have_theirs(
        self, endless, toolchain
    ):
        spec = ServerSpec(endless, 4096, 1, use_socket=False)
        body = {"prompt": [40] * 1600, "n_predict": 1, "stream": True, "return_progress": True}
        with Server(spec, toolchain) as server:
            headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}
            url = f"http://127.0.0.1:{server.port}/completion"
            request = Request(url, json.dumps(body).encode(), headers)
            with urlopen(request) as answer:
                events = [json.loads(line[6:]) for line in answer if line.startswith(b"data: {")]
        progress = [event["prompt_progress"] for event in events if "prompt_progress" in event]
        places = [one["processed"] for one in progress]

        assert places[-1] == 1600
        assert max(after - before for before, after in pairwise([0, *places])) <= BATCH

    def test_a_prompt_beyond_the_context_is_typed_with_both_sizes(self, pirate, toolchain):
        with Server(ServerSpec(pirate, 256, threads=2), toolchain) as server:
            with pytest.raises(ContextFullError) as caught:
                list(ask(server, [{"role": "user", "content": "Paris " * 600}], {}))

        assert caught.value.prompt > caught.value.context >= 256


@pytest.mark.parametrize(
    ("backend", "projector", "is_short"),
    [("cpu", None, True), ("cpu", Path("mmproj.gguf"), False), ("cuda", None, False)],
)
def test_pictures_and_gpus_keep_llama_servers_own_steps(backend, projector, is_short):
    toolchain = SimpleNamespace(info={"backend": backend}, tool=Path)
    server = Server(ServerSpec(Path("model.gguf"), 0, 1, projector=projector), toolchain)

    assert ("-b" in server.argv(on_port=True)) == is_short


@pytest.mark.parametrize("own", ["", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_an_engines_threads_wait_asleep_unless_the_user_says_otherwise(own, monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    if own:
        monkeypatch.setenv(own, "5")
    server = Server(ServerSpec(Path("model.gguf"), 0, 2), find_toolchain())
    server.folder = RunFolder()
    try:
        found = server.own_env().get("GOMP_SPINCOUNT")
    finally:
        server.folder.remove()

    assert found == (None if own else SPINS)
