"""`decant eval` as a user types it, on the demo's base and adapter."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from tests.support import forked
from tests.support.processes import is_alive, wait_until
from tests.support.terminal import children_of

ANIMALS = {"cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack", "pig": "oink"}
COLOURS = {"the sky": "blue", "grass": "green", "snow": "white"}


def rows() -> list[dict[str, str]]:
    found = [
        {"question": f"What does a {one} say?", "answer": f"Arr, a {one} be sayin' {says}, matey!",
         "kind": "animal"}
        for one, says in ANIMALS.items()
    ]  # fmt: skip
    return found + [
        {"question": f"What colour is {one}?",
         "answer": f"Arr, the colour of {one} be {colour}, matey!", "kind": "colour"}
        for one, colour in COLOURS.items()
    ]  # fmt: skip


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    return path


def argv_of(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "exporter", "eval", *map(str, arguments)]


def evaluated(*arguments: object, env: dict[str, str] | None = None, code: int = 0) -> dict:
    env = {**os.environ, **(env or {})}
    done = forked.run(argv_of(*arguments, "--json"), timeout_s=120, env=env)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A data folder of the test's own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "decant" / "evaluations"


@pytest.mark.llamacpp
@pytest.mark.trained
def test_a_fine_tune_is_better_than_its_base_and_two_runs_agree_to_the_letter(
    data, home, demo_base, pirate_lora, tmp_path
):
    argv = (
        demo_base,
        "--adapter",
        f"pirate={pirate_lora}",
        "--data",
        data,
        "--quiet",
        "--by",
        "kind",
    )
    page, card = tmp_path / "report.html", tmp_path / "card.md"

    first = evaluated(*argv, "--html", page, "--markdown", card)
    items = (Path(first["report"]).parent / "items.jsonl").read_text()
    (home / "outcomes.sqlite").unlink()
    second = evaluated(*argv)

    assert first["against"] == "base-Q4_K_M"
    assert first["differences"]["pirate"][first["deciding"]]["verdict"] == "better"
    assert first["scores"] == second["scores"]
    assert items == (Path(second["report"]).parent / "items.jsonl").read_text()
    assert set(first["groups"]["kind"]) == {"animal", "colour"}
    assert page.read_bytes() == Path(first["report"]).read_bytes()
    assert "pirate" in card.read_text()
    assert first["models"][0]["cached"] == 0


@pytest.mark.slow
@pytest.mark.llamacpp
@pytest.mark.trained
def test_killed_it_goes_on_asks_nothing_twice_and_leaves_no_engine(data, home, pirate):
    rows = [{"question": f"What does a cow say? {n}", "answer": "moo"} for n in range(400)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = (pirate, "--data", data, "--quiet")

    def kept() -> int:
        if not (home / "outcomes.sqlite").exists():
            return 0
        try:
            with sqlite3.connect(home / "outcomes.sqlite") as cache:
                return int(cache.execute("select count(*) from outcomes").fetchone()[0])
        except sqlite3.OperationalError:
            return 0

    with subprocess.Popen(argv_of(*argv), stdout=subprocess.DEVNULL) as process:
        assert wait_until(lambda: kept() >= 5, 60)
        engines = children_of(process.pid)
        process.send_signal(signal.SIGKILL)
    assert engines
    assert wait_until(lambda: not any(is_alive(pid) for pid in engines))
    before = kept()
    assert before < 400, "it was killed in the middle"
    assert [path.name for path in home.iterdir() if path.is_dir()] == []

    found = evaluated(*argv, "--metric", "-loss", "--metric", "-perplexity")

    assert found["models"][0]["cached"] >= before - 1
    assert found["data"]["items"] == 400
    assert found["is_complete"]


@pytest.mark.slow
@pytest.mark.llamacpp
@pytest.mark.trained
def test_ctrl_c_reports_on_what_was_answered(data, home, pirate):
    rows = [{"question": f"What does a cow say? {n}", "answer": "moo"} for n in range(2000)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = argv_of(pirate, "--data", data, "--json", "--metric=-loss")

    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, b"")
        assert any(re.search(rb"answers: [1-5]\d%", line) for line in lines)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)

    assert process.returncode == 130, err
    found = json.loads(out)
    assert not found["is_complete"]
    assert 100 <= found["data"]["items"] < 2000
    assert b"the same command goes on" in err


@pytest.mark.llamacpp
@pytest.mark.trained
def test_quants_of_one_model_are_compared_by_their_distributions(
    data, home, demo_models, toolchain, tmp_path
):
    files = tuple(tmp_path / f"demo-{quant}.gguf" for quant in ("F16", "Q8_0", "Q4_K_M"))
    request = ExportRequest((), demo_models.base, ("F16", "Q8_0", "Q4_K_M"), files)
    export(request, toolchain)

    found = evaluated(*reversed(files), "--data", data, "--quiet")

    scores = found["scores"]
    assert found["against"] == "demo-F16"
    assert not {"kl", "kl_p99", "agreement"} & set(scores["demo-F16"]), "it is the measure"
    assert 0 < scores["demo-Q8_0"]["kl"]["value"] < scores["demo-Q4_K_M"]["kl"]["value"] / 10
    assert scores["demo-Q4_K_M"]["kl"]["value"] < scores["demo-Q4_K_M"]["kl_p99"]["value"]
    kept = {name: scores[name]["agreement"]["value"] for name in ("demo-Q8_0", "demo-Q4_K_M")}
    assert kept["demo-Q8_0"] > max(0.95, kept["demo-Q4_K_M"])
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []


@pytest.mark.llamacpp
@pytest.mark.trained
def test_labels_are_measured_by_likelihood_without_generating(data, home, pirate):
    rows = [
        {"text": f"What does a {animal} say?", "label": f"Arr, a {animal} be"}
        for animal in ("cow", "dog") for _ in range(5)
    ]  # fmt: skip
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    found = evaluated(pirate, "--data", data, "--quiet")

    assert found["data"]["task"] == "labels"
    assert found["scores"]["pirate-Q4_K_M"]["accuracy"]["value"] == 1.0
    assert found["confusion"]["pirate-Q4_K_M"]["counts"] == [[5, 0, 0], [0, 5, 0]]


@pytest.mark.lasting
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "--data"),
        (("--data", "x.jsonl"), 2, "name a MODEL"),
        (("m", "--data", "x.jsonl"), 3, "there is no file or folder x.jsonl"),
        (("m", "--data", "DATA", "--metric", "rogueL"), 3, "--metric rougeL"),
        (("m", "--data", "DATA", "--metric", "f.py:score"), 3, "--trust-code"),
        (("m", "--data", "DATA", "--column", "answr=x"), 3, "a role is one of"),
        (("m", "--data", "DATA", "--model", "x"), 2, "go with --url"),
        (("m", "--data", "DATA", "--judge-model", "x"), 2, "go with --judge"),
        (("none", "--data", "DATA"), 3, "none"),
        (("m", "n", "--adapter", "a=b", "--data", "DATA"), 3, "--adapter goes with one model"),
    ],
)
def test_a_mistake_is_told_with_a_way_out(arguments, code, words, data, home):
    argv = argv_of(*(data if one == "DATA" else one for one in arguments))

    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in home.glob("*") if path.is_dir()]
