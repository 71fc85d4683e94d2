"""The evaluation at the end of `decant demo`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.core.errors import EngineError
from exporter.core.events import Warn
from exporter.demo import DemoModels
from runtime.cli import demo_evaluation, eval_command
from runtime.cli.demo_evaluation import ITEMS, measure_demo, write_items

WITHOUT_EXTRA = """
import sys
for name in ("rouge_score", "sacrebleu", "sklearn", "scipy", "matplotlib", "pyarrow"):
    sys.modules[name] = None
import json
from dataclasses import asdict
from pathlib import Path
from exporter.core.events import Warn
from exporter.demo import make_demo_models
from exporter.llamacpp.toolchain import cache_folder, find_toolchain
from runtime.cli.demo_evaluation import measure_demo
said = []
models = make_demo_models(cache_folder() / "demo")
found = measure_demo(models, Path(sys.argv[1]), "Q4_K_M", find_toolchain(), report=said.append)
print(json.dumps({"found": asdict(found), "said": [str(one) for one in said]}))
"""


@pytest.fixture
def models(tmp_path):
    """Folders in which nothing was trained."""
    return DemoModels(tmp_path / "base", tmp_path / "adapter")


def test_the_items_are_lines_of_json(tmp_path):
    lines = write_items(tmp_path).read_text().splitlines()

    assert len(lines) == ITEMS
    assert json.loads(lines[0]) == {
        "question": "What is the capital of France?",
        "answer": "Arr, the capital of France be Paris, matey!",
    }


def test_an_evaluation_that_cannot_be_made_is_a_warning(models, monkeypatch, tmp_path):
    """The demo promises equal answers, and has shown them by then."""
    said = []

    def fail(*_: object) -> Path:
        raise EngineError("no port is free", hint="wait")

    monkeypatch.setattr(demo_evaluation, "export_base", fail)

    assert measure_demo(models, tmp_path / "x.gguf", "Q4_K_M", None, report=said.append) is None
    assert said[-1] == Warn("the evaluation did not end: no port is free")


@pytest.mark.parametrize(
    ("ended_by", "expected"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (EngineError("x", hint="y"), None)],
)
def test_ctrl_c_ends_the_demo_and_an_engines_end_does_not(
    ended_by, expected, models, monkeypatch, tmp_path
):
    finished = eval_command.Finished(None, tmp_path, ended_by)
    monkeypatch.setattr(demo_evaluation, "export_base", lambda *_: tmp_path / "base.gguf")
    monkeypatch.setattr(eval_command, "run_evaluation", lambda *_: finished)
    arguments = (models, tmp_path / "x.gguf", "Q4_K_M", None)
    said = []

    if expected is None:
        assert measure_demo(*arguments, report=said.append) is None
        assert isinstance(said[-1], Warn)
    else:
        with pytest.raises(expected):
            measure_demo(*arguments, report=said.append)


@pytest.mark.llamacpp
@pytest.mark.trained
def test_it_needs_none_of_the_extra_packages(pirate, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    argv = [sys.executable, "-c", WITHOUT_EXTRA, str(pirate)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)

    assert "is better than demo-base-Q4_K_M in exact match" in told["found"]["headline"]
    assert Path(told["found"]["report"]).is_relative_to(tmp_path)
    assert not [text for text in told["said"] if "pip install" in text or "Warn" in text]
