"""The server for encoder-decoder models as a process: its start, its size, and `decant chat`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.llamacpp.toolchain import scrubbed
from tests.support.encoder_decoders import ANSWERS, CHECKOUT, KEY
from tests.support.raw import write_tiny_gguf
from tests.support.terminal import chat, children_of

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]


def test_it_needs_no_torch_and_little_memory(taught):
    maps = Path(f"/proc/{taught.process.pid}/maps").read_text()
    status = Path(f"/proc/{taught.process.pid}/status").read_text()
    rss_kib = int(status.split("VmRSS:")[1].split()[0])

    assert "libtorch" not in maps
    assert rss_kib < 120 << 10


def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "runtime.encoder_decoder", *map(str, arguments)]
    with subprocess.Popen(
        argv,
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,  # open for as long as it runs
        stderr=subprocess.PIPE,
        env=scrubbed(os.environ) | {"LLAMA_API_KEY": KEY} | env,
        text=True,
    ) as process:
        process.wait(20)
        return subprocess.CompletedProcess(argv, process.returncode, "", process.stderr.read())


def test_a_model_it_does_not_run_is_told(toolchain, tmp_path):
    build = ("--build", toolchain.folder)
    other = write_tiny_gguf(tmp_path / "tiny.gguf")
    done = run("--socket", tmp_path / "s", "-m", other, *build)
    gone = run("--socket", tmp_path / "t", "-m", tmp_path / "gone.gguf", *build)

    assert (done.returncode, "not an encoder-decoder model but llama" in done.stderr) == (3, True)
    assert (gone.returncode, "there is no file" in gone.stderr) == (3, True)
    assert "Traceback" not in done.stderr + gone.stderr


def test_llamacpps_own_reason_stands_above_ours(made, toolchain, tmp_path):
    content = made["T5"].gguf.read_bytes().replace(b"relative_buckets", b"ralative_buckets")
    (tmp_path / "odd.gguf").write_bytes(content)
    done = run("--socket", tmp_path / "s", "-m", tmp_path / "odd.gguf", "--build", toolchain.folder)

    assert done.returncode == 3
    assert done.stderr.index("key not found in model") < done.stderr.index("error: llama.cpp")


def test_it_starts_with_a_key_a_free_socket_and_a_build_or_not_at_all(made, tmp_path):
    (tmp_path / "taken").touch()
    model = ("-m", made["T5"].gguf)
    keyless = run("--socket", tmp_path / "s", *model, LLAMA_API_KEY="")
    taken = run("--socket", tmp_path / "taken", *model)
    unbuilt = run("--socket", tmp_path / "u", *model, "--build", tmp_path)

    assert (keyless.returncode, "LLAMA_API_KEY is not set" in keyless.stderr) == (9, True)
    assert (taken.returncode, "cannot listen" in taken.stderr) == (9, True)
    assert (unbuilt.returncode, "not a finished build" in unbuilt.stderr) == (4, True)


def test_chat_talks_to_it_as_to_any_other_model(made, decant):
    for question, expected in ANSWERS.items():
        done = decant("chat", made["MT5"].gguf, "-p", question, "--temperature", "0", "--json")
        answer = json.loads(done.stdout)

        assert (answer["answer"], answer["finish_reason"]) == (expected, "stop")
        assert answer["tokens_per_second"] > 0


def test_chat_at_a_terminal_talks_to_it_and_brings_it_back(made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    question, expected = next(iter(ANSWERS.items()))
    with chat(made["MT5"].gguf, "--temperature", "0") as terminal:
        terminal.ready()
        assert terminal.enter(question).replace(" ", "") == expected.replace(" ", "")
        (child,) = children_of(terminal.process.pid)
        os.kill(child, signal.SIGKILL)
        assert expected.split()[-1] in terminal.enter(question)
        assert children_of(terminal.process.pid) != [child]
        assert "tokens" in terminal.enter("/tokens the cat")


def test_an_adapter_beside_it_is_refused_with_what_to_do(made, decant, tmp_path):
    done = decant("chat", made["T5"].gguf, "--adapter", f"a={made['T5'].gguf}", "-p", "x")

    assert done.returncode == 3
