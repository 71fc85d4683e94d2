"""Tokens a second of llama.cpp as decant starts it against llama.cpp by itself.

    python benchmarks/waiting.py [--folder F] [--rounds N] [--write]

Once with the machine to itself, once beside a process that keeps one core busy: what differs is
how long a thread that has done its part spins before it sleeps. Both sides take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from benchmarks.chat import prepare  # noqa: E402
from exporter.core.machine import physical_cores  # noqa: E402
from exporter.toolchain import find_toolchain, host_facts, scrubbed  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "waiting.json"
LIMITS = {"alone": 0.97, "beside": 2.0}
PROMPT, TOKENS = 32, 24


def speeds(model: Path, env: Mapping[str, str]) -> tuple[float, float]:
    """Tokens a second: of the prompt, and of the answer."""
    argv = [
        str(find_toolchain().tool("llama-bench")), "-m", str(model), "-p", str(PROMPT),
        "-n", str(TOKENS), "-r", "1", "-t", str(physical_cores()), "-o", "json",
    ]  # fmt: skip
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    prompt, answer = (float(found["avg_ts"]) for found in json.loads(done.stdout))
    return prompt, answer


@contextmanager
def busy() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def in_turns(model: Path, rounds: int) -> dict[str, Any]:
    """Medians of both sides, and of their ratios."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    sides = {"decant": scrubbed(plain), "bare": plain}
    taken: list[dict[str, tuple[float, float]]] = []
    for number in range(rounds):
        order = sorted(sides, reverse=bool(number % 2))
        taken.append({side: speeds(model, sides[side]) for side in order})
    return {
        what: {
            **{f"{s}_per_s": statistics.median(one[s][place] for one in taken) for s in sides},
            "ratio": statistics.median(one["decant"][place] / one["bare"][place] for one in taken),
        }
        for place, what in enumerate(("prompt", "answer"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep the models here")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model, _, _ = prepare(folder)
        alone = in_turns(model, options.rounds)
        with busy():
            beside = in_turns(model, options.rounds)
    results = {
        "machine": f"{host_facts().model}, {os.cpu_count()} cores, {platform.system()}",
        "alone": alone,
        "beside": beside,
        "limits": LIMITS,
    }
    print(json.dumps(results, indent=2))
    if options.write:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    missed = [name for name, least in LIMITS.items() if results[name]["answer"]["ratio"] < least]
    for name in missed:
        print(f"missed: {name}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
