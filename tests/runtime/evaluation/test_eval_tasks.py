"""`decant eval --tasks`: lm-evaluation-harness, here a stand-in, asks decant's own server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from exporter.cli.app import run
from exporter.core.errors import EXIT_USAGE, EngineError, InputError, SpaceError, UnsupportedError
from exporter.core.gguf import GGUFFile
from runtime.cli import eval_tasks
from runtime.cli.eval_options import EvalOptions
from runtime.cli.eval_tasks import context_of, model_settings, refuse_other_purpose, tokenizer_of
from runtime.cli.from_folder import failure
from runtime.engine.opened_model import Model
from runtime.process.kept_processes import start_kept
from tests.support.processes import wait_until

CHECKOUT = Path(__file__).parents[3]
HARNESS = """
import json, os, pathlib, sys, time, urllib.request

argv = sys.argv[1:]
given = dict(zip(argv[::2], argv[1::2]))
settings = json.loads(given["--model_args"])
body = {"model": settings["model"], "prompt": "What is the capital of France?", "echo": True,
        "logprobs": 1, "max_tokens": 0}
request = urllib.request.Request(
    settings["base_url"], json.dumps(body).encode(), {"Content-Type": "application/json"})
with urllib.request.urlopen(request) as response:
    values = json.load(response)["choices"][0]["logprobs"]["token_logprobs"]
if os.environ.get("HARNESS_WAITS"):
    pathlib.Path(os.environ["HARNESS_WAITS"]).write_text(settings["base_url"])
    time.sleep(60)
if given["--tasks"] == "no_such_task":
    sys.exit("Tasks not found: no_such_task")
place = pathlib.Path(given["--output_path"], "model")
place.mkdir(parents=True)
results = {"arc_easy": {"acc,none": 0.5, "logprob": sum(values[1:])}}
(place / "results_1.json").write_text(json.dumps({"results": results, "argv": argv}))
print("|arc_easy|0.5|")
"""


@pytest.fixture
def stand_in(tmp_path) -> dict[str, str]:
    """The environment of a decant that finds a stand-in for the harness."""
    package = tmp_path / "packages" / "lm_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(HARNESS)
    paths = f"{package.parent}{os.pathsep}{CHECKOUT}"
    return {"PYTHONPATH": paths, "XDG_DATA_HOME": str(tmp_path / "home")}


def model(**metadata: object) -> Model:
    return Model(GGUFFile(Path("base.gguf"), 0, {"general.architecture": "llama", **metadata}, ()))


def test_the_harness_has_to_be_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)

    code = run(["eval", "some-model", "--tasks", "arc_easy"])

    said = capsys.readouterr().err
    assert code == InputError.exit_code
    assert "pip install 'lm_eval[api]'" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "with --data, or benchmarks with --tasks"),
        (["--tasks", "arc_easy", "--data", "x.jsonl"], "with --data, or benchmarks with --tasks"),
        (["--tasks", "arc_easy", "--judge", "http://127.0.0.1:1"], "--judge is for --data"),
        (["--tasks", "arc_easy", "--metric", "bleu"], "--metric is for --data"),
        (["--tasks", "arc_easy", "--max-tokens", "4"], "--max-tokens is for --data"),
    ],
)
def test_contradictory_options_are_refused(arguments, message, capsys):
    code = run(["eval", "some-model", *arguments])

    assert code == EXIT_USAGE
    assert message in capsys.readouterr().err


def test_the_tokenizer_is_that_of_base(tmp_path):
    assert tokenizer_of(model(), str(tmp_path)) == str(tmp_path)
    assert tokenizer_of(model(), "some/base") == "some/base"


def test_else_the_tokenizer_is_that_of_the_repo_that_the_gguf_names():
    named = {"decant.base": "base", "decant.base.repo": "some/base"}

    assert tokenizer_of(model(**named), None) == "some/base"


@pytest.mark.parametrize(
    ("metadata", "base", "message"),
    [
        ({}, None, "does not name its base"),
        ({"decant.base": "base"}, None, "names its base as 'base' only"),
        ({"decant.base": "/gone/base"}, None, "names its base as '/gone/base' only"),
        ({"decant.base.repo": "some/base"}, "base.gguf", "`base.gguf` is no folder"),
    ],
)
def test_a_model_without_a_tokenizer_is_refused(metadata, base, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(InputError, match=message) as caught:
        tokenizer_of(model(**metadata), base)

    assert "--base" in caught.value.hint


@pytest.mark.parametrize(
    "metadata", [{"general.architecture": "t5"}, {"llama.pooling_type": 1}], ids=["t5", "embedder"]
)
def test_what_does_not_continue_a_text_is_refused(metadata):
    with pytest.raises(UnsupportedError, match="does not continue a text"):
        refuse_other_purpose(model(**metadata))

    refuse_other_purpose(model())


@pytest.mark.parametrize(
    ("trained", "ctx", "context"), [(512, None, 512), (131072, None, 4096), (131072, 8192, 8192)]
)
def test_prompts_are_as_long_as_the_servers_context(trained, ctx, context):
    served = model(**{"llama.context_length": trained})

    assert context_of(served, EvalOptions((), context=ctx)) == context


@pytest.mark.parametrize("has_bos", [True, False])
def test_bos_is_added_where_the_model_adds_it(has_bos):
    served = model(**{"tokenizer.ggml.add_bos_token": has_bos})

    settings = model_settings(
        served, "base:a", "http://x", "some/base", EvalOptions((), parallel=3)
    )

    assert settings == {
        "model": "base:a", "base_url": "http://x/v1/completions", "tokenizer": "some/base",
        "num_concurrent": 3, "max_length": 4096, "add_bos_token": has_bos,
    }  # fmt: skip


def test_the_error_of_a_server_that_ends_is_its_own():
    said = "loading\nerror: no memory\n"

    error = failure(5, said, ["base.gguf"], "serve")

    assert (type(error), error.message) == (SpaceError, "no memory")
    assert error.hint == "try it by hand: decant serve base.gguf"


@pytest.mark.llamacpp
@pytest.mark.trained
def test_each_model_is_measured_over_its_own_server(
    decant, demo_models, demo_base, pirate_lora, stand_in
):
    done = decant(
        "eval", demo_base, "--adapter", f"pirate={pirate_lora}", "--base", demo_models.base,
        "--tasks", "arc_easy", "--limit", "4", "--json", **stand_in, DECANT_API_KEY="some-key-1234",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    base, adapted = found["models"].values()
    assert list(found["models"]) == [demo_base.stem, f"{demo_base.stem}:pirate"]
    assert base["model_args"]["tokenizer"] == str(demo_models.base)
    assert base["results"]["arc_easy"]["acc,none"] == 0.5
    assert base["results"]["arc_easy"]["logprob"] < 0
    assert base["results"]["arc_easy"]["logprob"] != adapted["results"]["arc_easy"]["logprob"]
    argv = json.loads(Path(base["file"]).read_text())["argv"]
    assert argv[argv.index("--limit") + 1] == "4"
    assert "|arc_easy|0.5|" in done.stderr
    written = json.loads(Path(found["report"]).read_text())
    assert written["models"] == found["models"]


@pytest.mark.llamacpp
@pytest.mark.trained
def test_what_the_harness_says_of_its_failure_is_shown(decant, demo_models, demo_base, stand_in):
    done = decant(
        "eval", demo_base, "--base", demo_models.base, "--tasks", "no_such_task", **stand_in
    )

    assert done.returncode == EngineError.exit_code
    assert "lm_eval ended with 1: Tasks not found: no_such_task" in done.stderr
    assert "Traceback" not in done.stderr


IGNORING = (
    "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import time; print(flush=True); time.sleep(60)", -signal.SIGTERM),
        (IGNORING, -signal.SIGKILL),
    ],
    ids=["ends", "ignores SIGTERM"],
)
def test_a_child_has_ended_before_the_next_model_is_served(code, status, monkeypatch):
    monkeypatch.setattr(eval_tasks, "STOP_S", 0.2)
    argv = [sys.executable, "-S", "-c", code]
    process = start_kept(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    process.stdout.readline()

    eval_tasks.ended(process)

    assert process.returncode == status


def is_listening(url: str) -> bool:
    place = urlsplit(url)
    with socket.socket() as one:
        return one.connect_ex((place.hostname, place.port)) == 0


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_server_and_harness_end_with_decant(number, demo_models, demo_base, stand_in, tmp_path):
    waiting = tmp_path / "waiting"
    argv = [
        sys.executable, "-m", "exporter", "eval", demo_base, "--base", demo_models.base,
        "--tasks", "arc_easy",
    ]  # fmt: skip
    env = {**os.environ, **stand_in, "HARNESS_WAITS": str(waiting)}
    with subprocess.Popen(argv, env=env, cwd=CHECKOUT, stderr=subprocess.PIPE) as process:
        assert wait_until(lambda: waiting.exists() and waiting.read_text(), 60)
        url = waiting.read_text()
        assert is_listening(url)
        process.send_signal(number)
        process.communicate()

    assert wait_until(lambda: not is_listening(url))
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
