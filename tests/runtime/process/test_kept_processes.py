"""An engine ends with the process that started it, however that ends and whatever it is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from exporter.core.errors import ModelError
from exporter.llamacpp.toolchain import Toolchain
from runtime.engine import llama_server
from runtime.engine.llama_server import Server, ServerSpec
from runtime.process import exit_with_parent
from runtime.process.kept_processes import start_kept
from tests.support.fake_engine import behave, toolchain
from tests.support.processes import wait_until
from tests.support.raw import write_tiny_gguf

pytestmark = pytest.mark.lasting

CHECKOUT = Path(__file__).parents[3]
STARTER = """
import sys, threading
from functools import partial
from pathlib import Path
from runtime.engine import llama_server
from runtime.engine.llama_server import Server, ServerSpec
from runtime.process.kept_processes import start_kept
from tests.support.fake_engine import toolchain

model, folder, doing, by = sys.argv[1:]
llama_server.start_kept = partial(start_kept, by_kernel=by == "kernel")
server = Server(ServerSpec(Path(model), 64, 1), toolchain(Path(folder)))
if doing == "load":
    server.link_adapters = lambda: print("started", flush=True)
server.__enter__()
def ask():
    with server.post("/completion", {"prompt": "x"}):
        pass
if doing == "answer":
    threading.Thread(target=ask, daemon=True).start()
print("up", flush=True)
sys.stdin.read()
"""


def engines_of(folder: Path) -> list[int]:
    """The processes that have become engines of a file in this folder."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(exit_with_parent.__file__) in words:
            continue
        if b"-m" in words and os.fsencode(folder) in words[words.index(b"-m") + 1]:
            found.append(int(line.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
@pytest.mark.parametrize("by", ["kernel", "guard"])
@pytest.mark.parametrize("doing", ["load", "answer", "stopped"])
def test_killed_it_leaves_no_engine_whatever_that_is_doing(doing, by, tmp_path):
    """By the kernel, as on Linux, and by the guard, as on macOS."""
    how = {"stays": True, "stubborn": True, "load_s": 60 if doing == "load" else 0}
    model = behave(write_tiny_gguf(tmp_path / "m.gguf"), **how)
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(model), str(tmp_path), doing, by],
        cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with starter:
        assert starter.stdout is not None
        assert starter.stdout.readline()
        assert wait_until(lambda: len(engines_of(tmp_path)) == 1, 10)
        (engine,) = engines_of(tmp_path)
        if doing == "stopped":
            os.kill(engine, signal.SIGSTOP)
        starter.kill()

    assert wait_until(lambda: not engines_of(tmp_path), 5)


def test_the_thread_that_starts_an_engine_may_end(tmp_path):
    """Linux would kill it with that thread."""
    model = behave(write_tiny_gguf(tmp_path / "m.gguf"))
    server = Server(ServerSpec(model, 64, 1), toolchain(tmp_path))
    starting = threading.Thread(target=server.__enter__)
    starting.start()
    starting.join()
    try:
        assert not wait_until(lambda: server.process.poll() is not None, 0.3)
        assert server.is_healthy()
    finally:
        server.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
@pytest.mark.parametrize("by_kernel", [True, False])
def test_one_that_hears_nothing_is_killed_with_its_guard(by_kernel, tmp_path, monkeypatch):
    """As when the server is asked twice to end: it is killed before its input is closed."""
    monkeypatch.setattr(llama_server, "start_kept", partial(start_kept, by_kernel=by_kernel))
    model = behave(write_tiny_gguf(tmp_path / "m.gguf"), stays=True)
    server = Server(ServerSpec(model, 64, 1), toolchain(tmp_path))
    server.__enter__()
    (engine,) = engines_of(tmp_path)
    os.kill(engine, signal.SIGSTOP)

    server.process.kill()
    server.stop()

    assert wait_until(lambda: not engines_of(tmp_path), 5)


def test_a_guard_ends_with_its_programs_status_and_hands_on_what_asks_it_to_end():
    options = {"stdin": subprocess.PIPE, "start_new_session": True, "by_kernel": False}
    with start_kept(["/bin/sh", "-c", "exit 3"], stderr=subprocess.PIPE, **options) as done:
        assert done.wait(10) == 3
        assert done.stderr.read() == b""

    asking = "trap 'exit 4' TERM; echo up; read x"
    with start_kept(["/bin/sh", "-c", asking], stdout=subprocess.PIPE, **options) as asked:
        assert asked.stdout.readline() == b"up\n"
        asked.terminate()
        assert asked.wait(10) in (4, 128 + signal.SIGTERM)


def test_a_guard_that_is_asked_to_end_while_it_starts_its_program_hands_that_on():
    """The program may be up before its guard goes on: SIGTERM must not end the guard alone."""
    code = f"""
import runpy, signal, subprocess, sys
class StartsSlowly(subprocess.Popen):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        signal.raise_signal(signal.SIGTERM)
subprocess.Popen = StartsSlowly
sys.argv = ["guard", "/bin/sh", "-c", "read x"]
runpy.run_path({exit_with_parent.__file__!r}, run_name="__main__")
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as guard:
        assert guard.wait(10) == 128 + signal.SIGTERM


def test_a_program_that_is_not_there_is_an_end_with_a_word(tmp_path):
    process = start_kept([str(tmp_path / "none")], stderr=subprocess.PIPE)

    assert b"cannot start" in process.communicate()[1]
    assert process.returncode == 127


REAL_STARTER = """
import sys, threading
from functools import partial
from pathlib import Path
from exporter.llamacpp.toolchain import find_toolchain
from runtime.engine import llama_server
from runtime.engine.llama_server import Server, ServerSpec
from runtime.process.kept_processes import start_kept

model, doing, by = sys.argv[1:]
llama_server.start_kept = partial(start_kept, by_kernel=by == "kernel")
server = Server(ServerSpec(Path(model), 1 << 16, 1), find_toolchain())
server.__enter__()
def ask():
    body = {"prompt": "x " * 9000, "n_predict": 1 << 20, "ignore_eos": True, "stream": True}
    with server.post("/completion", body) as response:
        while response.read(1 << 10):
            print("token", flush=True)
threading.Thread(target=ask if doing != "stopped" else print, daemon=True).start()
print("up", flush=True)
sys.stdin.read()
"""


@pytest.mark.llamacpp
@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
@pytest.mark.parametrize("by", ["kernel", "guard"])
@pytest.mark.parametrize("doing", ["prompt", "decode", "stopped"])
def test_a_llama_server_ends_with_its_starter(doing, by, toolchain: Toolchain, tmp_path):
    """While it computes a prompt or tokens, and where it is stopped."""
    model = write_tiny_gguf(tmp_path / "m.gguf")
    starter = subprocess.Popen(
        [sys.executable, "-c", REAL_STARTER, str(model), doing, by], cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with starter:
        assert starter.stdout is not None
        awaited = b"token\n" if doing == "decode" else b"up\n"
        while starter.stdout.readline() != awaited:
            assert starter.poll() is None
        (engine,) = engines_of(tmp_path)
        if doing == "stopped":
            os.kill(engine, signal.SIGSTOP)
        starter.kill()

    assert wait_until(lambda: not engines_of(tmp_path), 5)


def test_a_template_that_does_not_end_is_why_a_model_does_not_load(tmp_path, monkeypatch):
    monkeypatch.setattr(llama_server, "TRIAL_S", 0.1)
    monkeypatch.setattr("exporter.inputs.template_process.WALL_S", 2)
    model = behave(write_tiny_gguf(tmp_path / "m.gguf"), load_s=60)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    spec = ServerSpec(model, 64, 1, chat=llama_server.ChatFormat(own=endless))

    with pytest.raises(ModelError, match=r"the chat template of `.*m\.gguf` cannot be used"):
        Server(spec, toolchain(tmp_path)).__enter__()
    assert not engines_of(tmp_path)
