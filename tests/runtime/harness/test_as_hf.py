"""lm-evaluation-harness, unchanged, finds through `decant serve` what its `hf` model finds.

The tasks are the harness's own files over a few documents of ours.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.formats.gguf_lora import LoraRequest, export_lora
from tests.runtime.gateway.conftest import Served, serving

pytestmark = [pytest.mark.lm_eval, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]

DATA = Path(__file__).parent / "data"
TASKS = {
    "arc_easy": "arc/arc_easy.yaml", "hellaswag": "hellaswag/hellaswag.yaml",
    "piqa": "piqa/piqa.yaml", "winogrande": "winogrande/default.yaml",
    "lambada": "lambada/lambada_openai.yaml", "gsm8k": "gsm8k/gsm8k.yaml",
}  # fmt: skip
"""The harness's task files, by the names of our documents."""
FILES = {"gsm8k": {"train": "gsm8k_examples", "test": "gsm8k"}}
CLOSE = 1e-3  # nats, of a whole continuation
SCALE = 0.5


@dataclass(frozen=True)
class Run:
    """What the harness found."""

    results: dict[str, dict[str, Any]]
    samples: dict[str, list[dict[str, Any]]]
    """By the task, in the order of the documents."""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder of tasks that include the harness's, with our documents for its data sets."""
    assert find_spec("lm_eval"), "lm_eval is missing: make lm-eval installs it"
    theirs = Path(find_spec("lm_eval").submodule_search_locations[0]) / "tasks"
    folder: Path = tmp_path_factory.mktemp("tasks")
    for name, file in TASKS.items():
        splits = ("train", "validation", "test")
        files = FILES.get(name, dict.fromkeys(splits, name))
        task = {
            "include": str(theirs / file),
            "task": f"own_{name}",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {split: str(DATA / f"{one}.jsonl") for split, one in files.items()}
            },
        }
        (folder / f"own_{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture(scope="module")
def served(demo_models, toolchain, tmp_path_factory) -> Iterator[Served]:
    """The demo's base in F32 with its adapter."""
    root = tmp_path_factory.mktemp("served")
    base, lora = root / "base.gguf", root / "pirate.lora.gguf"
    export(ExportRequest((), demo_models.base, ("F32",), (base,)), toolchain)
    export_lora(LoraRequest(demo_models.adapter, demo_models.base, lora), toolchain)
    with serving(root, base, "--adapter", f"pirate={lora}") as found:
        found.wait_until_ready()
        yield found


def harness(tmp: Path, tasks: Path, model: str, settings: dict[str, object]) -> Run:
    """Run the harness as its users do; the samples are as it logs them."""
    arguments = ",".join(f"{name}={value}" for name, value in settings.items())
    names = ",".join(f"own_{name}" for name in TASKS)
    argv = [
        sys.executable, "-m", "lm_eval", "--model", model, "--model_args", arguments,
        "--tasks", names, "--include_path", str(tasks), "--output_path", str(tmp), "--log_samples",
        "--num_fewshot", "1", "--gen_kwargs", "max_gen_toks=24", "--batch_size", "8",
        "--device", "cpu",
    ]  # fmt: skip
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp / "cache")}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = tmp.rglob("results_*.json")
    samples = {}
    for name in TASKS:
        (file,) = tmp.rglob(f"samples_own_{name}_*.jsonl")
        found = [json.loads(line) for line in file.read_text().splitlines()]
        samples[name] = sorted(found, key=lambda one: (one["doc_id"], one["filter"]))
    told = json.loads(results.read_text())["results"]
    return Run({name: told[f"own_{name}"] for name in TASKS}, samples)


@pytest.fixture(scope="module", params=["base", f"base:pirate@{SCALE}"])
def runs(request, served, demo_models, tasks, tmp_path_factory) -> tuple[Run, Run]:
    """What the harness finds through the server, and with its own model."""
    root: Path = tmp_path_factory.mktemp("runs")
    theirs: dict[str, object] = {"pretrained": demo_models.base, "dtype": "float32"}
    if ":" in request.param:
        theirs["peft"] = weaker(demo_models.adapter, root / "weaker")
    ours = {
        "model": request.param, "base_url": f"{served.url}/v1/completions",
        "tokenizer": demo_models.base, "num_concurrent": 2, "max_length": 512,
        "add_bos_token": True,  # as `hf` does where the tokenizer does
    }  # fmt: skip
    with ThreadPoolExecutor(2) as pool:  # each spends most of its time on imports
        found = [
            pool.submit(harness, root / name, tasks, model, settings)
            for name, model, settings in (
                ("ours", "local-completions", ours), ("theirs", "hf", theirs)
            )
        ]  # fmt: skip
        return found[0].result(), found[1].result()


def weaker(adapter: Path, folder: Path) -> Path:
    """The adapter as it is at SCALE."""
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["lora_alpha"] *= SCALE
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def likelihoods(sample: dict[str, Any]) -> list[tuple[float, bool]]:
    """Of each continuation: the log-likelihood, and whether it is the greedy one."""
    found = [one[0] for one in sample["resps"]]
    return [(float(value), str(greedy) == "True") for value, greedy in found]


@pytest.mark.parametrize("task", [name for name in TASKS if name != "gsm8k"])
def test_log_likelihoods_and_accuracy_are_those_of_hf(runs, task):
    ours, theirs = runs

    assert len(ours.samples[task]) == len((DATA / f"{task}.jsonl").read_text().splitlines())
    for mine, other in zip(ours.samples[task], theirs.samples[task], strict=True):
        assert mine["arguments"] == other["arguments"]
        pairs = list(zip(likelihoods(mine), likelihoods(other), strict=True))
        assert pairs
        for (value, greedy), (expected, is_greedy) in pairs:
            assert value == pytest.approx(expected, abs=CLOSE)
            assert greedy == is_greedy
        assert mine.get("acc") == other.get("acc")
    for name, value in theirs.results[task].items():
        if name.startswith(("acc", "perplexity")) and "stderr" not in name:
            assert ours.results[task][name] == pytest.approx(value, rel=CLOSE), name


def test_generated_answers_and_accuracy_are_those_of_hf(runs):
    ours, theirs = runs

    for mine, other in zip(ours.samples["gsm8k"], theirs.samples["gsm8k"], strict=True):
        assert mine["arguments"] == other["arguments"]
        assert mine["resps"] == other["resps"]
        assert mine["exact_match"] == other["exact_match"]
    for name, value in theirs.results["gsm8k"].items():
        if name.startswith("exact_match") and "stderr" not in name:
            assert ours.results["gsm8k"][name] == value
