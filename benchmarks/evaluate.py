"""What `decant eval` adds to the time that its models need.

    .venv/bin/python benchmarks/evaluate.py [--items 1000] [--threads N] [--write]

On the demo's models, in one run: the answers of three models to the same questions by `decant eval`
against the same requests to bare llama-servers; labels by likelihood against labels by generated
answers; the memory of an evaluation of many items; and benchmarks/harness.py's comparison. On a
machine that does other things, `--threads 1` spares the engines' threads waiting for each other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from benchmarks.harness import against_harness  # noqa: E402
from exporter.core.machine import cores, physical_cores  # noqa: E402
from exporter.demo import make_demo_models  # noqa: E402
from exporter.demo.corpus import ANIMALS, COLOURS, COUNTRIES  # noqa: E402
from exporter.export import export  # noqa: E402
from exporter.formats.export_request import ExportRequest  # noqa: E402
from exporter.llamacpp.toolchain import (  # noqa: E402
    Toolchain,
    cache_folder,
    find_toolchain,
    host_facts,
)
from runtime.engine.llama_server import Server, ServerSpec  # noqa: E402
from runtime.engine.openai_client import ask_json  # noqa: E402
from runtime.evaluation.local_model import peak_of  # noqa: E402
from tests.support.random_gguf import LLAMA_1_5B, write_random  # noqa: E402

RESULTS = Path(__file__).with_suffix(".json")
QUANTS = ("F16", "Q8_0", "Q4_K_M")
TOKENS = 32
ROUNDS = 5  # of answers: two threads on two processors vary by a third
CHAT = "/v1/chat/completions"


def main() -> None:
    """Measure, print and perhaps keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument(
        "--many", type=int, default=10_000, help="items by which memory is measured"
    )
    parser.add_argument(
        "--few", type=int, default=8, help="items for the comparison with lm_eval's hf model"
    )
    parser.add_argument("--threads", type=int, default=physical_cores(), help="of all engines")
    parser.add_argument("--write", action="store_true", help=f"keep the figures in {RESULTS.name}")
    asked = parser.parse_args()
    toolchain = find_toolchain()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        models = exported(root, toolchain)
        found = {
            "answers": answers(root, models, asked, toolchain),
            "labels": {
                "demo": labels(root, models[-1], asked.items, asked.threads),
                "four layers of Llama 3.2 1B's shape": labels(
                    root, large_model(root, toolchain), 96, asked.threads
                ),
            },
            "memory": memory(root, models[-1], asked.many, asked.threads),
            "lm_eval's hf model": against_harness(root, asked.few, asked.threads, toolchain),
        }
    host = host_facts()
    found["machine"] = {
        "cpu": host.model,
        "features": host.features,
        "cores": cores(),
        "threads": asked.threads,
    }
    print(json.dumps(found, indent=2))
    if asked.write:
        RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def exported(root: Path, toolchain: Toolchain) -> list[Path]:
    demo = make_demo_models(cache_folder() / "demo")
    paths = [root / f"demo-{quant}.gguf" for quant in QUANTS]
    export(ExportRequest(((demo.adapter, 1.0),), demo.base, QUANTS, tuple(paths)), toolchain)
    return paths


def large_model(root: Path, toolchain: Toolchain) -> Path:
    """A model whose computing takes longer than asking it; its weights are random."""
    path = root / "random-Q4_K_M.gguf"
    write_random(path, replace(LLAMA_1_5B, layers=4), toolchain.source / "gguf-py")
    return path


def questions(count: int) -> list[str]:
    """Different questions of the kinds that the demo knows."""
    kinds = [f"What does a {one} say?" for one in ANIMALS]
    kinds += [f"What colour is {one}?" for one in COLOURS]
    kinds += [f"What is the capital of {one}?" for one in COUNTRIES]
    return [f"{kinds[n % len(kinds)]} {n}" for n in range(count)]


def evaluated(root: Path, arguments: list[object]) -> tuple[float, float, dict[str, object]]:
    """Seconds, the peak resident size in MiB and the results of `decant eval`."""
    argv = [sys.executable, "-m", "exporter", "eval", *map(str, arguments), "--json", "--quiet"]
    with tempfile.TemporaryDirectory(dir=root) as data:
        env = {**os.environ, "XDG_DATA_HOME": data}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled already
        began = time.monotonic()
        process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE)
        peak = 0
        with ThreadPoolExecutor(1) as reader:
            assert process.stdout is not None
            out = reader.submit(process.stdout.read)
            while process.poll() is None:
                peak = max(peak, peak_of(process.pid))
                time.sleep(0.05)
            took_s = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"decant eval ended with {process.returncode}")
    return took_s, peak / (1 << 20), json.loads(out.result())


def answers(
    root: Path, models: list[Path], options: argparse.Namespace, toolchain: Toolchain
) -> dict[str, object]:
    """Three models' answers, against the same requests to bare llama-servers."""
    data = root / "answers.jsonl"
    count, threads = options.items, options.threads
    asked = questions(count)
    rows = [{"question": one, "answer": "Arr, it be so, matey!"} for one in asked]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = [*models, "--data", data, "-n", TOKENS, "--threads", threads]
    arguments += ["--metric=-loss", "--metric=-perplexity"]
    rounds: list[tuple[float, float]] = []
    size = 0.0
    for _ in range(ROUNDS):
        bare_s = sum(served(path, asked, threads, toolchain) for path in models)
        took_s, peak, _ = evaluated(root, arguments)
        size = max(size, peak)
        rounds.append((took_s, bare_s))
    ratios = [round(ours / theirs, 3) for ours, theirs in rounds]
    return {
        "items": count, "models": len(models), "ratio": median(ratios), "ratios": ratios,
        "decant_eval_s": round(median(ours for ours, _ in rounds), 1),
        "llama_server_s": round(median(theirs for _, theirs in rounds), 1),
        "memory_mib": round(size),
    }  # fmt: skip


def served(path: Path, asked: list[str], threads: int, toolchain: Toolchain) -> float:
    """Seconds of a llama-server with one slot for all requests, its start included."""
    began = time.monotonic()
    with Server(ServerSpec(path, 0, threads), toolchain) as server:

        def one(question: str) -> object:
            body = {"messages": [{"role": "user", "content": question}], "temperature": 0,
                    "seed": 0, "max_tokens": TOKENS, "cache_prompt": False}  # fmt: skip
            return ask_json(server, CHAT, body)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(one, asked))
    return time.monotonic() - began


def label_rows(count: int) -> list[dict[str, str]]:
    """Questions with the labels that answer them."""
    names = [sound for sound, *_ in ANIMALS.values()]
    return [
        {"text": f"What does a {one} say? {n}", "label": name}
        for n in range(count // len(names))
        for one, name in zip(ANIMALS, names, strict=True)
    ]


def labels(root: Path, model: Path, count: int, threads: int) -> dict[str, object]:
    """Labels by likelihood, against labels by generated answers."""
    data = root / "labels.jsonl"
    rows = label_rows(count)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = [model, "--data", data, "-n", TOKENS, "--threads", threads]
    _, _, likely = evaluated(root, common)
    generating = [f"--metric=-{name}" for name in ("accuracy", "macro_f1", "ece")]
    _, _, written = evaluated(root, [*common, "--metric", "exact_match", *generating])
    by_likelihood, by_generation = (
        found["models"][0]["seconds"]
        for found in (likely, written)  # type: ignore[index]
    )
    return {
        "items": len(rows), "labels": len(ANIMALS), "likelihood_s": round(by_likelihood, 2),
        "generation_s": round(by_generation, 2),
        "ratio": round(by_generation / by_likelihood, 2),
    }  # fmt: skip


def memory(root: Path, model: Path, count: int, threads: int) -> dict[str, object]:
    """The peak resident size of `decant eval` itself, its engines left out."""
    data = root / "many.jsonl"
    rows = [{"question": one, "answer": "Arr, it be so, matey!"} for one in questions(count)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    took_s, size, _ = evaluated(root, [model, "--data", data, "-n", 12, "--threads", threads])
    return {"items": count, "peak_mib": round(size), "seconds": round(took_s, 1)}


if __name__ == "__main__":
    sys.exit(main())
