"""`decant worker` as a user runs it: how it ends, where it listens, what it keeps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from exporter.core.errors import EngineDiedError
from runtime.engine.llama_server import Server, ServerSpec
from runtime.rpc.protocol import read_answer
from runtime.rpc.rpc_server import RpcSpec
from runtime.rpc.worker import Worker
from tests.runtime.conftest import sockets_of
from tests.support.forked import popen
from tests.support.processes import descendants, is_alive, wait_until
from tests.support.rpc_workers import ONE, address, said, spec, spread

llamacpp = pytest.mark.llamacpp
trained = pytest.mark.trained


@llamacpp
class TestCommand:
    """`decant worker` as a user runs it."""

    @contextmanager
    def running(self, *arguments, **env):
        argv = [sys.executable, "-m", "exporter", "worker", "--port", "0", *arguments]
        with popen(
            argv, env={**os.environ, **env}, text=True,
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
                assert wait_until(lambda: not any(map(is_alive, started)), 5)
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
