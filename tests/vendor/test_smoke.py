from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vendor.build import Build, find
from vendor.recipe import read_recipe
from vendor.report import BuildError
from vendor.smoke import check_starts, scrubbed, smoke_test

CHECKOUT = Path(__file__).parents[2]
ANSWERS = """
import http.server, os, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def address_string(self): return "x"
    def do_GET(self): self.answer(b"{}")
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(BODY)
    def answer(self, body):
        self.send_response(200); self.send_header("Content-Length", str(len(body)))
        self.end_headers(); self.wfile.write(body)
class Server(socketserver.UnixStreamServer):
    def get_request(self): return super().get_request()[0], ("x", 0)
Server(sys.argv[sys.argv.index("--host") + 1], Handler).serve_forever()
"""
ONE_TOKEN = "BODY = b'{\"tokens\": [1]}'"
FOUR_TOKENS = "BODY = b'{\"tokens\": [1, 2, 3, 4]}'"
NOT_A_NUMBER = (
    'BODY = b\'{"tokens": [1, 2, 3, 4], "completion_probabilities": [{"logprob": null}]}\''
)
DIES_ON_REQUEST = "class BODY:\n    def __len__(self): os.abort()\nBODY = BODY()"


@pytest.fixture
def build() -> Build:
    """The real build; a missing one is a failure."""
    found = find(read_recipe(), env=os.environ)
    assert found, "llama.cpp is not built here: run `make setup`"
    return found


def server(folder: Path, code: str) -> Path:
    """A program that notes its process id and runs `code`, a stand-in for llama-server."""
    path = folder / "llama-server"
    pid = f"import os; open({str(folder / 'pid')!r}, 'w').write(str(os.getpid()))"
    program = folder / "server.py"
    program.write_text(f"{pid}\nprint('loading', flush=True)\n{code}\n")
    # through a shell: a first line naming the interpreter breaks at a space in its path
    path.write_text(f"#!/bin/sh\nexec '{sys.executable}' -S '{program}' \"$@\"\n")
    path.chmod(0o755)
    return path


def runs(folder: Path) -> bool:
    """Whether the stand-in still runs; one that only waits to be reaped does not."""
    argv = ["ps", "-o", "stat=", "-p", (folder / "pid").read_text()]
    state = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_server_that_decodes_passes(tmp_path: Path):
    result = smoke_test(server(tmp_path, f"{FOUR_TOKENS}\n{ANSWERS}"), env=os.environ)
    assert result["tokens"] == [1, 2, 3, 4]
    assert not runs(tmp_path)


@pytest.mark.lasting
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os.abort()", "died with SIGABRT"),
        ("raise SystemExit(3)", "ended with exit code 3"),
        ("import time; time.sleep(60)", "was not ready after 0.5 s"),
        (f"{ONE_TOKEN}\n{ANSWERS}", "decoded 1 tokens, not 4"),
        (f"{NOT_A_NUMBER}\n{ANSWERS}", "computed [None] as log probabilities"),
        (f"{DIES_ON_REQUEST}\n{ANSWERS}", "died with SIGABRT"),
    ],
)
def test_server_that_fails_is_told_with_its_last_words(tmp_path: Path, code: str, words: str):
    ready_s = 0.5 if "0.5 s" in words else 20  # a busy machine takes a while to start the others
    with pytest.raises(BuildError, match="loading") as caught:
        smoke_test(server(tmp_path, code), env=os.environ, ready_s=ready_s)
    assert words in caught.value.message
    assert not runs(tmp_path)


def test_server_deaf_to_signals_is_killed(tmp_path: Path):
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    path = server(tmp_path, f"{deaf}{FOUR_TOKENS}\n{ANSWERS}")
    smoke_test(path, env=os.environ, stop_s=0.1)
    assert not runs(tmp_path)


def test_server_that_is_no_program_is_told(tmp_path: Path):
    with pytest.raises(BuildError, match="does not start"):
        smoke_test(tmp_path / "nothing", env=os.environ)


def test_server_sees_no_stray_settings():
    env = {"PATH": "/bin", "LLAMA_ARG_TOOLS": "all", "HF_TOKEN": "x", "http_proxy": "x"}
    assert scrubbed(env) == {"PATH": "/bin"}


def test_tool_without_its_libraries_does_not_start(tmp_path: Path):
    lost = tmp_path / "llama-lost"
    lost.write_text("#!/bin/sh\necho libggml.so: cannot open shared object file >&2\nexit 127\n")
    lost.chmod(0o755)
    with pytest.raises(BuildError, match=r"llama-lost does not start.*\n.*cannot open shared"):
        check_starts({"llama-lost": lost}, env=os.environ)


@pytest.mark.llamacpp
def test_every_tool_of_the_real_build_starts(build: Build):
    tools = {name: build.tool(name) for name in read_recipe().tools}
    check_starts(tools, env=os.environ)


@pytest.mark.llamacpp
def test_real_build_decodes(build: Build):
    result = smoke_test(build.tool("llama-server"), env=os.environ)
    assert len(result["tokens"]) == 4


@pytest.mark.llamacpp
def test_real_build_decodes_the_same_tokens_each_time(build: Build):
    first, second = (smoke_test(build.tool("llama-server"), env=os.environ) for _ in range(2))
    assert first["tokens"] == second["tokens"]


@pytest.mark.llamacpp
def test_real_build_has_what_its_users_ask_for(build: Build):
    for name in read_recipe().libraries:
        assert build.library(name).exists()
    for part in ("conversion/base.py", "gguf-py/gguf/constants.py", "convert_hf_to_gguf.py"):
        assert (build.src / part).exists()
    assert (build.python / "llama_cpp" / "llama_cpp.py").exists()
    assert build.info["commit"] == read_recipe().commit


@pytest.mark.llamacpp
def test_server_ends_by_itself_when_the_smoke_test_is_killed(build: Build, tmp_path: Path):
    program = f"""
import os, signal
from pathlib import Path
from vendor import smoke
from vendor.tiny import write_tiny_gguf
folder = Path({str(tmp_path)!r})
write_tiny_gguf(folder / "tiny.gguf")
server = Path({str(build.tool("llama-server"))!r})
with smoke._running(server, folder, folder / "log", os.environ, 1) as process:
    (folder / "pid").write_text(str(process.pid))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, check=False)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while runs(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs(tmp_path)
