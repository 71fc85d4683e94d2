"""One question to a real model through the command line, and what is left behind: nothing."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys

import pytest

from exporter.core.errors import EngineError
from exporter.core.terminal_text import without_controls
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.openai_client import Delta, Stopped, ask
from runtime.engine.socket_connection import SocketConnection
from runtime.process.run_dir import RunFolder
from tests.runtime.conftest import ANSWER, QUESTION
from tests.support.processes import is_alive, wait_until
from tests.support.terminal import children_of

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]


@pytest.fixture
def server(pirate, toolchain):
    with Server(ServerSpec(pirate, context=256, threads=2), toolchain) as running:
        yield running


def test_one_question_one_answer_on_stdout(decant, pirate):
    done = decant("chat", pirate, "-p", QUESTION, "--temperature", "0")

    assert (done.returncode, done.stdout, done.stderr) == (0, f"{ANSWER}\n", "")


def test_the_question_can_come_from_a_pipe_and_the_answer_be_json(pirate):
    argv = [sys.executable, "-m", "exporter", "chat", str(pirate), "--temperature", "0", "--json"]
    done = subprocess.run(argv, input=QUESTION, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)

    assert answer["answer"] == ANSWER
    assert answer["finish_reason"] == "stop"
    assert answer["tokens"] > 5


def test_a_token_limit_and_a_system_message_reach_the_model(decant, pirate):
    done = decant("chat", pirate, "-p", QUESTION, "--temperature", "0", "-n", "2", "--json")
    answer = json.loads(done.stdout)

    assert (answer["tokens"], answer["finish_reason"]) == (2, "length")
    with_system = decant(
        "chat", pirate, "-p", QUESTION, "-n", "1", "--system", "Be brief.", "--json"
    )
    assert json.loads(with_system.stdout)["prompt_tokens"] > answer["prompt_tokens"]


def test_no_training_library_is_imported(pirate):
    argv = [sys.executable, "-X", "importtime", "-m", "exporter", "chat", str(pirate)]
    done = subprocess.run(
        [*argv, "-p", QUESTION, "-n", "1"], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}

    assert "runtime.engine.llama_server" in imported
    assert imported.isdisjoint({"torch", "transformers", "peft", "numpy", "rich", "prompt_toolkit"})


def test_nothing_to_ask_is_said(decant, pirate):
    done = decant("chat", pirate)  # its standard input is empty

    assert done.returncode == 2
    assert "nothing to ask" in done.stderr


def test_a_prompt_beyond_the_context_is_explained(decant, pirate):
    done = decant("chat", pirate, "--ctx", "256", "-p", "Paris " * 600)

    assert done.returncode == 9
    assert "exceed" in done.stderr
    assert "--ctx" in done.stderr


def test_poisoned_variables_do_not_reach_the_server(decant, pirate):
    """Each flag of llama-server has a variable; these would cut the answer or break the start."""
    poison = {"LLAMA_ARG_N_PREDICT": "1", "LLAMA_ARG_PORT": "x", "AIP_MODE": "PREDICTION"}
    done = decant("chat", pirate, "-p", QUESTION, "--temperature", "0", **poison)

    assert done.stdout == f"{ANSWER}\n"


def test_the_socket_lies_where_only_this_user_can_go(server):
    assert stat.S_IMODE(server.run_folder.path.stat().st_mode) == 0o700
    assert len(str(server.run_folder.socket)) < 104


def test_the_server_wants_its_key(server):
    with SocketConnection(server.run_folder.socket, 5) as connection:
        connection.request("POST", "/v1/completions", b"{}", {"Content-Type": "application/json"})

        assert connection.getresponse().status == 401


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(server):
    """A terminal signals the whole group in front; the server is in another."""
    assert server.process is not None
    assert os.getpgid(server.process.pid) != os.getpgid(0)


def test_the_key_is_in_no_command_line(server):
    assert server.process is not None
    argv = subprocess.run(
        ["ps", "-o", "args=", "-p", str(server.process.pid)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert server.key not in argv


def test_the_process_and_its_folder_are_gone_after_the_block(pirate, toolchain):
    with Server(ServerSpec(pirate, context=256, threads=1), toolchain) as server:
        pid, folder = server.process.pid, server.run_folder.path
        assert is_alive(pid)

    assert not is_alive(pid)
    assert not folder.exists()


def test_the_process_is_gone_after_an_error_in_the_block(pirate, toolchain):
    with pytest.raises(ZeroDivisionError):
        with Server(ServerSpec(pirate, context=256, threads=1), toolchain) as server:
            pid = server.process.pid
            _ = 1 / 0

    assert not is_alive(pid)


def test_the_process_dies_when_its_parent_is_killed(pirate, toolchain):
    code = f"""
import time
from pathlib import Path
from exporter.llamacpp.toolchain import find_toolchain
from runtime.engine.llama_server import Server, ServerSpec
with Server(ServerSpec(Path({str(pirate)!r}), context=256, threads=1), find_toolchain()) as server:
    print(server.process.pid, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()

    assert wait_until(lambda: not is_alive(child), 2)


def test_ctrl_c_in_the_middle_of_an_answer_ends_everything(pirate):
    argv = [
        sys.executable,
        "-m",
        "exporter",
        "chat",
        str(pirate),
        "-p",
        QUESTION,
        "--temperature",
        "5",
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert wait_until(lambda: children_of(process.pid), 30)
        children = children_of(process.pid)  # looked at now: the answer takes a few milliseconds
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=15)

    assert process.returncode in (0, 130)  # 0 when the answer was complete first
    assert wait_until(lambda: not any(is_alive(pid) for pid in children))


def test_a_server_that_crashes_is_told_with_its_last_lines(server):
    server.process.kill()
    server.process.wait()

    with pytest.raises(EngineError, match="ended by SIGKILL"):
        list(ask(server, [{"role": "user", "content": QUESTION}], {}))


def test_a_file_that_is_no_model_for_llamacpp_is_told_with_its_log(
    tiny_base, pirate, toolchain, tmp_path
):
    """A whole GGUF of an architecture that does not exist."""
    content = bytearray(pirate.read_bytes())
    at = content.index(b"llama", content.index(b"general.architecture"))
    content[at : at + 5] = b"lorem"
    (tmp_path / "odd.gguf").write_bytes(content)

    with pytest.raises(EngineError, match="lorem"):
        with Server(ServerSpec(tmp_path / "odd.gguf", context=256, threads=1), toolchain):
            pytest.fail("it must not become ready")


def test_the_answer_comes_in_pieces_and_ends_with_its_numbers(server):
    *deltas, last = ask(
        server, [{"role": "user", "content": QUESTION}], {"temperature": 0, "max_tokens": 40}
    )

    assert len(deltas) > 5
    assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) == ANSWER
    assert isinstance(last, Stopped)
    assert (last.reason, last.tokens > 5, last.tokens_per_second > 0) == ("stop", True, True)


def test_a_long_tmpdir_does_not_break_the_socket(tmp_path, monkeypatch):
    import tempfile

    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = RunFolder()
    try:
        assert len(str(folder.socket)) < 104
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    finally:
        folder.remove()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a[31mb"),
        ("tab\tline\n", "tab\tline\n"),
        ("\x9b2J\x07\r\x00", "2J"),
        ("ü → 日本", "ü → 日本"),
    ],
)
def test_what_a_terminal_would_obey_is_removed(text, shown):
    assert without_controls(text) == shown
