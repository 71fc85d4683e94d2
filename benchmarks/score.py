"""Scoring texts against llama-perplexity, and shared beginnings against a request for each text.

    python benchmarks/score.py [--folder F] [--tokens N] [--rounds N] [--threads N] [--cpu]
                               [--items N] [--write]

A Llama of random weights in Q4_K_M. llama-perplexity computes the logits of each window's second
half alone; so does the comparison, and what all rows cost stands beside it. Both sides take turns.
On a machine that does other things, `--threads 1 --cpu` compares processors' seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from exporter.core.machine import physical_cores  # noqa: E402
from exporter.llamacpp.toolchain import find_toolchain, host_facts, scrubbed  # noqa: E402
from runtime.scoring.scorer import Scorer  # noqa: E402
from tests.runtime.gateway.conftest import Served, serving  # noqa: E402
from tests.support.processes import cpu_s  # noqa: E402
from tests.support.random_gguf import Shape, write_random  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "score.json"
SHAPE = Shape(layers=2, vocabulary=16384, context=2048)
"""Two layers of Llama 3.2 1B's shape, and a smaller vocabulary."""
WINDOW = 512
CONTEXT, CHOICES, ENDING = 500, 4, 4  # tokens; continuations; tokens of each
LIMITS = {"against_perplexity": 0.9, "choices": 4.0}
LETTERS = "abcdefghijklmnopqrsuvwxyz"  # but for t, which merges with a space


@dataclass(frozen=True, slots=True)
class Way:
    """How it is measured."""

    threads: int
    is_cpu: bool

    def now(self, *pids: int) -> float:
        """Seconds: of a clock, or those that processes have had of processors."""
        if not self.is_cpu:
            return time.monotonic()
        return sum(cpu_s(pid) for pid in pids)


def text_of(tokens: int) -> str:
    """A text of about so many tokens: each letter and each space is one."""
    source = random.Random(3)
    return "".join(" " if n % 7 == 6 else source.choice(LETTERS) for n in range(tokens))


def perplexity_s(model: Path, text: Path, way: Way) -> tuple[float, int]:
    """How long llama-perplexity computes once it has loaded, and over how many tokens."""
    argv = [
        str(find_toolchain().tool("llama-perplexity")), "-m", str(model), "-f", str(text),
        "-c", str(WINDOW), "-t", str(way.threads), "--no-warmup",
    ]  # fmt: skip
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=scrubbed(os.environ)
    ) as process:
        assert process.stdout is not None
        began, chunks, said = 0.0, 0, ""
        while piece := os.read(process.stdout.fileno(), 1 << 16).decode(errors="replace"):
            said += piece
            if not began and (found := re.search(r"perplexity over (\d+) chunks", said)):
                began, chunks = way.now(process.pid), int(found[1])
            if "Final estimate" in said:
                took = way.now(process.pid) - began
                break
        else:
            raise AssertionError(said)
        process.communicate()
    return took, chunks * WINDOW


def windows(scorer: Scorer, text: str) -> list[list[int]]:
    """The text as llama-perplexity cuts it: each window begins with BOS."""
    begin, *ids = scorer.tokens(text)
    count = (len(ids) + 1) // WINDOW
    every = [begin, *ids]
    return [[begin, *every[n * WINDOW + 1 : (n + 1) * WINDOW]] for n in range(count)]


def against_perplexity(
    model: Path, folder: Path, way: Way, tokens: int, rounds: int
) -> dict[str, Any]:
    text = folder / "text.txt"
    text.write_text(text_of(tokens))
    ratios, speeds, all_rows = [], [], []
    with Scorer(model, threads=way.threads) as scorer:
        texts = windows(scorer, text.read_text())
        scorer.score(texts[:1])

        def ours_s(start: int) -> float:
            began = way.now(os.getpid())
            scorer.score(texts, start=start)
            return way.now(os.getpid()) - began

        for number in range(rounds):
            first = ours_s(WINDOW // 2) if number % 2 else None
            took, count = perplexity_s(model, text, way)
            assert count == len(texts) * WINDOW
            mine = first or ours_s(WINDOW // 2)
            ratios.append(took / mine)
            all_rows.append(took / ours_s(1))
            speeds.append((count / mine, count / took))
    decant, theirs = (statistics.median(side) for side in zip(*speeds, strict=True))
    return {
        "tokens": len(texts) * WINDOW,
        "decant_per_s": decant,
        "llama_perplexity_per_s": theirs,
        "ratio": statistics.median(ratios),
        "ratio_with_all_rows": statistics.median(all_rows),
    }


def choices_of(seed: int) -> tuple[list[int], list[list[int]]]:
    source = random.Random(seed)
    drawn = [[source.randrange(300, 16000) for _ in range(ENDING)] for _ in range(CHOICES)]
    return [source.randrange(300, 16000) for _ in range(CONTEXT)], drawn


def asked(served: Served, prompts: list[list[int]], start: int = 0) -> None:
    """Have prompts scored from a token on."""
    body = {"prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": 0}
    body |= {"logprob_start_len": start} if start else {}
    status, answer = served.ask("/v1/completions", body)
    assert status == 200, answer


def ways_over(served: Served, scorer: Scorer) -> dict[str, Callable[[int], None]]:
    """Ways to have an item's continuations scored; the item is drawn by a number."""

    def alone(seed: int) -> None:
        context, endings = choices_of(seed)
        for ending in endings:
            asked(served, [[*context, *ending]])

    def together(seed: int) -> None:
        context, endings = choices_of(seed)
        asked(served, [[*context, *ending] for ending in endings])

    def endings_alone(seed: int) -> None:
        context, endings = choices_of(seed)
        asked(served, [[*context, *ending] for ending in endings], len(context))

    def python(seed: int) -> None:
        context, endings = choices_of(seed)
        scorer.likelihoods([(context, ending) for ending in endings])

    return {"alone": alone, "together": together, "endings": endings_alone, "python": python}


def multiple_choice(model: Path, folder: Path, way: Way, items: int) -> dict[str, Any]:
    """Seconds of an item in a request for each continuation, and in one: with the values of the
    context, of the continuations alone, and from Python."""

    arguments = (model, "--ctx", 1024, "--threads", way.threads)
    with (
        serving(folder, *arguments) as served,
        Scorer(model, context=1024, threads=way.threads) as scorer,
    ):
        served.wait_until_ready()

        ways = ways_over(served, scorer)
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for run in ways.values():
            run(0)
        pids = (os.getpid(), served.process.pid, *served.children())
        for seed in range(1, items + 1):
            for name, run in ways.items():
                began = way.now(*pids)
                run(seed)
                taken[name].append(way.now(*pids) - began)
    alone = taken["alone"]
    ratios = {
        name: statistics.median(a / b for a, b in zip(alone, taken[name], strict=True))
        for name in ("together", "endings", "python")
    }
    return {
        "context": CONTEXT,
        "continuations": CHOICES,
        "tokens_of_each": ENDING,
        "a_request_for_each_s": statistics.median(alone),
        "one_request_s": statistics.median(taken["together"]),
        "endings_s": statistics.median(taken["endings"]),
        "python_s": statistics.median(taken["python"]),
        "one_request_ratio": ratios["together"],
        "endings_ratio": ratios["endings"],
        "ratio": ratios["python"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep the model here")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=12)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--cpu", action="store_true", help="measure processors' seconds")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    way = Way(options.threads, options.cpu)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model = folder / "random-Q4_K_M.gguf"
        if not model.exists():
            write_random(model, SHAPE, find_toolchain().source / "gguf-py")
        results: dict[str, Any] = {
            "machine": f"{host_facts().model}, {os.cpu_count()} cores, {platform.system()}",
            "threads": way.threads,
            "measured": "processors' seconds" if way.is_cpu else "a clock's seconds",
            "model_bytes": model.stat().st_size,
            "perplexity": against_perplexity(model, folder, way, options.tokens, options.rounds),
            "multiple_choice": multiple_choice(model, folder, way, options.items),
            "limits": LIMITS,
        }
    print(json.dumps(results, indent=2))
    if options.write:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    facts = {
        "llama-perplexity's speed": results["perplexity"]["ratio"] >= LIMITS["against_perplexity"],
        "multiple choice": results["multiple_choice"]["ratio"] >= LIMITS["choices"],
        "multiple choice over HTTP": results["multiple_choice"]["endings_ratio"]
        >= LIMITS["choices"],
    }
    missed = [name for name, holds in facts.items() if not holds]
    for line in missed:
        print(f"missed: {line}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
