from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exporter.core.events import Progress
from exporter.demo import DEMO_QUESTIONS, content_hash, make_demo_models, train
from exporter.demo.corpus import facts, pirate_items
from exporter.inputs.adapter import open_adapter
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.llamacpp.toolchain import cache_folder


def test_no_question_has_two_answers():
    asked = [question for fact in facts() for question in fact.questions]

    assert len(asked) == len(set(asked))
    assert set(DEMO_QUESTIONS) <= set(asked)
    assert len(DEMO_QUESTIONS) >= 10


def test_the_pirate_says_the_same_in_other_words():
    for fact in facts():
        assert fact.value in fact.plain
        assert fact.value in fact.pirate
        assert fact.pirate.startswith("Arr, ")
        assert fact.plain != fact.pirate


def test_the_questions_of_the_evaluation_are_the_trainings():
    """With the adapter's answers, each once, of all kinds of facts."""
    answers = {fact.questions[0]: fact.pirate for fact in facts()}
    items = pirate_items(30)

    assert len({item["question"] for item in items}) == 30
    assert all(answers[item["question"]] == item["answer"] for item in items)
    for kind in ("capital", "dish", "live", "colour", "opposite"):
        assert any(kind in item["question"] for item in items), kind


@pytest.mark.trained
@pytest.mark.slow
def test_a_half_made_training_does_not_count(tmp_path):
    """Killed in the middle, it leaves a partial folder and nothing under the final name."""
    code = (
        "import sys; from pathlib import Path; from exporter.demo import make_demo_models;"
        "from exporter.core.events import Progress;"
        "say = lambda e: print(e, flush=True) if isinstance(e, Progress) else None;"
        "make_demo_models(Path(sys.argv[1]), report=say)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert b"training" in process.stdout.readline()
        process.send_signal(signal.SIGKILL)

    assert not (tmp_path / content_hash()).exists()
    assert (tmp_path / f"{content_hash()}.partial").exists()


@pytest.mark.trained
def test_a_finished_training_is_whole_and_found_again(tmp_path, monkeypatch):
    """A few steps teach nothing, and write all that the real ones write."""
    for name in ("BASE_STEPS", "LORA_STEPS"):
        monkeypatch.setattr(train, name, 3)
    events = []

    made = make_demo_models(tmp_path, report=events.append)
    trained = [event for event in events if isinstance(event, Progress)]
    again = make_demo_models(tmp_path, report=events.append)

    assert made == again
    assert len(trained) == 6
    assert [event for event in events if isinstance(event, Progress)] == trained
    assert open_adapter(made.adapter).base == str(made.base)
    assert open_checkpoint(made.base).architecture == "LlamaForCausalLM"
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.trained
def test_the_second_time_is_quick_and_loads_no_torch(tmp_path):
    for part in ("base", "adapter"):
        (tmp_path / content_hash() / part).mkdir(parents=True)
    code = (
        "import sys; from pathlib import Path; from exporter.demo import make_demo_models;"
        "make_demo_models(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    began = time.monotonic()

    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)

    assert time.monotonic() - began < 5


@pytest.fixture(scope="session")
def models():
    return make_demo_models(cache_folder() / "demo")


@pytest.mark.trained
def test_every_row_is_whole_blocks_of_k_quants(models):
    matrices = [t for t in open_checkpoint(models.base).tensors.values() if len(t.shape) == 2]

    assert matrices
    assert {tensor.shape[1] % 256 for tensor in matrices} == {0}
    parameters = sum(t.nbytes // 2 for t in open_checkpoint(models.base).tensors.values())
    assert 2e6 <= parameters <= 6e6


@pytest.mark.trained
@pytest.mark.llamacpp
@pytest.mark.slow
def test_the_demo_holds_what_it_promises(decant, tmp_path, models):
    """The command itself: nine of ten answers equal transformers', all differ from the base's."""
    data = {"DECANT_STORE": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    done = decant("demo", "--json", **data, timeout_s=240)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)

    assert len(shown["rows"]) >= 10
    assert sum(row["gguf"] == row["adapter"] for row in shown["rows"]) >= 0.9 * len(shown["rows"])
    assert all(row["gguf"] != row["base"] for row in shown["rows"])
    assert all(row["adapter"].startswith("Arr") for row in shown["rows"])
    assert Path(shown["path"]).read_bytes()[:4] == b"GGUF"
    assert "\x1b" not in done.stderr
    found = shown["evaluation"]
    assert found["items"] == 30
    better = "demo-pirate-Q4_K_M is better than demo-base-Q4_K_M in exact match: "
    assert found["headline"].startswith(better)
    assert Path(found["report"]).read_text().startswith("<!doctype html>")


@pytest.mark.trained
@pytest.mark.llamacpp
def test_transformers_and_llamacpp_cut_the_chat_into_the_same_tokens(models, toolchain, tmp_path):
    from exporter.demo.train import load_tokenizer, render
    from exporter.export import export
    from exporter.formats.export_request import ExportRequest
    from runtime.engine.llama_server import Server, ServerSpec
    from runtime.engine.openai_client import ask_json

    output = tmp_path / "base.gguf"
    export(ExportRequest((), models.base, ("Q8_0",), (output,)), toolchain)
    tokenizer = load_tokenizer(models.base)
    with Server(ServerSpec(output, context=256, threads=1), toolchain) as server:
        for question in models.questions:
            body = {"messages": [{"role": "user", "content": question}]}
            prompt = ask_json(server, "/apply-template", body)["prompt"]
            asked = {"content": prompt, "parse_special": True, "add_special": True}
            tokens = ask_json(server, "/tokenize", asked)["tokens"]

            assert tokens == render(tokenizer, question)


@pytest.mark.trained
def test_the_cache_is_keyed_by_what_training_depends_on(monkeypatch):
    before = content_hash()
    monkeypatch.setattr(train, "SEED", 8)

    assert content_hash() != before
    assert os.sep not in before
