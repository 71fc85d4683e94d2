"""`decant export --eval`: the smallest file without a loss, and what it is compared with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.cli.app import run
from exporter.cli.outputs.evaluated_output import (
    PREFIX,
    SixteenBits,
    compared_with,
    measured_models,
    sizes_of,
)
from exporter.core.errors import EXIT_USAGE, InputError
from exporter.core.events import silent
from exporter.core.leftover_folders import start_of, sweep
from exporter.export import ExportedFile, ExportResult
from exporter.formats import gguf_file
from exporter.formats.export_request import ExportRequest
from runtime.cli.eval_export import smallest_without_loss
from runtime.evaluation.evaluated_model import AnswerSettings
from runtime.evaluation.evaluation import Evaluation
from runtime.evaluation.metrics.metric_choice import METRICS
from runtime.evaluation.outcome_cache import OutcomeCache
from runtime.evaluation.run_evaluation import ModelGroup, Run, plan_of
from runtime.evaluation.summary import Comparison
from tests.support.evaluated_models import ScriptedModel, dataset_of, questions

pytestmark = pytest.mark.lasting

ITEMS = 60
SIZES = {"tune-Q8_0": 800, "tune-Q4_K_M": 400}


def evaluation_of(folder: Path, q8: ScriptedModel, q4: ScriptedModel) -> Evaluation:
    """An evaluation of scripted models against one that is always right."""
    metrics = tuple(METRICS[name] for name in ("exact_match", "loss"))
    dataset = dataset_of(folder, questions(ITEMS))
    plan = plan_of(dataset, metrics, AnswerSettings())
    models = (ScriptedModel("tune-BF16"), q8, q4)
    with OutcomeCache(folder / "outcomes.sqlite") as cache:
        groups = [ModelGroup((model,)) for model in models]
        asked = Run(groups, dataset, plan, Comparison(metrics, "tune-BF16"), cache)
        asked.ask()
        return asked.results(id="x", began="now")[1]


def wrong(name: str, count: int) -> ScriptedModel:
    """A model that answers the first items wrongly."""
    return ScriptedModel(name, {f"say {n}": "no" for n in range(count)})


def unsure(name: str) -> ScriptedModel:
    """A model that answers rightly, and gives right answers a smaller likelihood."""
    return ScriptedModel(name, likely={f"say {n}": -3.0 * len(f"say {n}") for n in range(ITEMS)})


def test_the_smallest_file_that_is_not_worse_is_named(tmp_path):
    found = evaluation_of(tmp_path, wrong("tune-Q8_0", 0), wrong("tune-Q4_K_M", 0))

    name, sentence = smallest_without_loss(found, SIZES)

    assert name == "tune-Q4_K_M"
    assert sentence == (
        "tune-Q4_K_M is the smallest without a loss that shows: against tune-BF16, neither exact"
        " match nor loss is worse at n = 60."
    )


def test_a_single_file_is_not_called_the_smallest(tmp_path):
    found = evaluation_of(tmp_path, wrong("tune-Q8_0", 0), wrong("tune-Q4_K_M", 40))

    good, bad = (smallest_without_loss(found, {name: size}) for name, size in SIZES.items())

    assert good[0] == "tune-Q8_0"
    assert good[1].startswith("tune-Q8_0 shows no loss: against tune-BF16, neither")
    assert bad[0] is None
    assert bad[1].startswith("it shows a loss against tune-BF16: tune-Q4_K_M is worse by")


def test_a_file_with_wrong_answers_is_passed_over(tmp_path):
    found = evaluation_of(tmp_path, wrong("tune-Q8_0", 0), wrong("tune-Q4_K_M", 40))

    name, sentence = smallest_without_loss(found, SIZES)

    assert name == "tune-Q8_0"
    assert sentence.endswith("at n = 60 (tune-Q4_K_M is worse by exact match).")


def test_a_loss_of_likelihood_counts_where_answers_are_equal(tmp_path):
    found = evaluation_of(tmp_path, wrong("tune-Q8_0", 0), unsure("tune-Q4_K_M"))

    assert smallest_without_loss(found, SIZES)[0] == "tune-Q8_0"


def test_no_file_is_named_where_each_is_worse(tmp_path):
    found = evaluation_of(tmp_path, unsure("tune-Q8_0"), wrong("tune-Q4_K_M", 40))

    name, sentence = smallest_without_loss(found, SIZES)

    assert name is None
    assert sentence == (
        "each shows a loss against tune-BF16: tune-Q4_K_M is worse by exact match;"
        " tune-Q8_0 is worse by loss."
    )


def test_without_a_comparison_nothing_is_said(tmp_path):
    found = evaluation_of(tmp_path, wrong("tune-Q8_0", 0), wrong("tune-Q4_K_M", 0))

    assert smallest_without_loss(found, {}) == (None, "")
    assert smallest_without_loss(found, {"another": 1}) == (None, "")


def file(quant: str, nbytes: int) -> ExportedFile:
    return ExportedFile(Path(f"out/tune-{quant}.gguf"), quant, nbytes, {})


FILES = (file("Q4_K_M", 400), file("Q8_0", 800))


def test_models_go_from_the_base_to_the_smallest():
    base, reference = Path("tmp/base-BF16.gguf"), Path("tmp/tune-BF16.gguf")

    assert measured_models(FILES, reference, base) == [
        base, reference, FILES[1].path, FILES[0].path
    ]  # fmt: skip
    assert compared_with(FILES, reference, base) == "tune-BF16"
    assert sizes_of(FILES, reference) == SIZES


def test_without_a_16_bit_model_the_largest_file_is_compared_with():
    base = Path("tmp/base-BF16.gguf")

    assert compared_with(FILES, None, base) == "tune-Q8_0"
    assert sizes_of(FILES, None) == SIZES
    assert compared_with(FILES[:1], None, base) == "base-BF16"
    assert sizes_of(FILES[:1], None) == {}
    assert compared_with(FILES[:1], None, None) is None


def test_a_16_bit_output_is_the_reference_and_is_measured_once(tmp_path):
    files = (*FILES, file("F16", 1600))
    result = ExportResult(files, Path("base"), (), 1, 1, 0.0)
    request = ExportRequest((), None, ("Q4_K_M", "Q8_0", "F16"), tuple(f.path for f in files))
    made = SixteenBits(request, result, None, tmp_path, silent)  # no toolchain is needed

    reference = made.reference(files, [])

    assert reference == files[2].path
    assert measured_models(files, reference, None) == [
        files[2].path,
        *(f.path for f in FILES[::-1]),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "data.jsonl"), ("{]\n", "data.jsonl"), ("", "data.jsonl")],
    ids=["missing", "malformed", "empty"],
)
@pytest.mark.trained  # the command looks for torch first
def test_errors_of_the_data_come_before_the_export(tmp_path, capsys, content, message):
    data = tmp_path / "data.jsonl"
    if content is not None:
        data.write_text(content)

    code = run(["export", str(tmp_path / "no-adapter"), "--eval", str(data)])

    said = capsys.readouterr().err
    assert code == InputError.exit_code
    assert message in said
    assert "no-adapter" not in said


def test_only_ggufs_are_measured(capsys):
    code = run(["export", "some-adapter", "--to", "vllm", "--eval", "data.jsonl"])

    assert code == EXIT_USAGE
    assert "--eval is for --to gguf" in capsys.readouterr().err


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "data.jsonl"
    lands = ("France", "Italy", "Spain", "Peru", "Japan", "Egypt")
    rows = [{"text": f"Arr, the capital of {land} be far away, matey!"} for land in lands]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.llamacpp
@pytest.mark.trained
def test_an_export_measures_base_16_bit_model_and_files(
    warm_decant, demo_models, toolchain, data, tmp_path
):
    out, adapter = tmp_path / "out", tmp_path / "my-lora"
    shutil.copytree(demo_models.adapter, adapter)
    (adapter / "training.yaml").write_text("train_file: data.jsonl\n")

    done = warm_decant(
        "export", adapter, "--base", demo_models.base, "-q", "Q4_K_M", "-q", "Q8_0",
        "-o", out, "--eval", data, "--json", "--no-verify", XDG_DATA_HOME=str(tmp_path / "home"),
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = [model["name"] for model in found["evaluation"]["models"]]
    quants = [model["quant"] for model in found["evaluation"]["models"]]
    assert quants == ["BF16", "BF16", "Q8_0", "Q4_K_M"]
    assert found["evaluation"]["against"] == names[1]
    assert set(found["evaluation"]["differences"]) == {names[0], *names[2:]}
    notes = [note.partition(":")[0] for note in found["evaluation"]["data"]["notes"]]
    assert "the merged model in BF16 was exported for this evaluation only" in notes
    assert any(note.startswith("my-lora was trained on data of this name") for note in notes)
    shows = f"{found['evaluation']['smallest']} is the smallest", "each shows a loss"
    assert found["evaluation"]["sentence"].startswith(shows)
    assert Path(found["evaluation"]["report"]).read_text().startswith("<!")
    assert sorted(path.suffix for path in out.iterdir()) == [".gguf", ".gguf"]


@pytest.mark.llamacpp
@pytest.mark.trained
def test_a_dry_run_measures_nothing(warm_decant, demo_models, toolchain, data, tmp_path):
    done = warm_decant(
        "export", demo_models.adapter, "--base", demo_models.base, "-o", tmp_path / "out",
        "--eval", data, "--dry-run", "--json", XDG_DATA_HOME=str(tmp_path / "home"),
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "evaluation" not in json.loads(done.stdout)
    assert not (tmp_path / "home" / "decant" / "evaluations").exists()


@pytest.mark.llamacpp
@pytest.mark.trained
def test_what_the_disk_has_no_room_for_is_left_out_and_said(
    demo_models, toolchain, tmp_path, monkeypatch
):
    adapters = ((demo_models.adapter, 1.0),)
    request = ExportRequest(adapters, demo_models.base, ("Q4_K_M",), (FILES[0].path,))
    result = ExportResult(FILES[:1], demo_models.base, (demo_models.adapter,), 1, 1, 0.0)
    made = SixteenBits(request, result, toolchain, tmp_path, silent)
    monkeypatch.setattr(gguf_file, "free_bytes", lambda folder: 0)
    notes = []

    assert made.reference(FILES[:1], notes) is None
    assert made.base(notes) is None

    assert [note.partition(":")[0] for note in notes] == [
        "the merged model in BF16 is left out", "the base is left out"
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_what_a_killed_evaluation_left_is_deleted_and_what_a_running_one_uses_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = os.getpid()
    left, used = tmp_path / f".eval-{dead.pid}-1-x", tmp_path / f".eval-{own}-{start_of(own)}-y"
    for folder in (left, used):
        folder.mkdir()
        (folder / "base-BF16.gguf").write_bytes(b"weights")

    sweep(tmp_path, PREFIX)

    assert not left.exists()
    assert (used / "base-BF16.gguf").exists()
