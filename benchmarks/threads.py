"""How many threads a small model is worth: llama-bench with one and with one for each core.

    python benchmarks/threads.py [--write]

Alone, and beside a process that keeps one core busy: there the threads wait for the one that
shares its core, after each matrix. `useful_threads` of exporter/core/machine.py rests on it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from exporter.core.machine import physical_cores, useful_threads  # noqa: E402
from exporter.llamacpp.toolchain import Toolchain, find_toolchain, host_facts  # noqa: E402
from runtime.engine.llama_server import SPINS  # noqa: E402
from tests.support.random_gguf import Shape, write_random  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "threads.json"
PROMPT, ANSWER, ROUNDS = 64, 32, 3  # tokens, tokens, and how often
BUSY_S = 300  # the busy process ends by itself after this time
SHAPES = (
    Shape(layers=4, width=256, inner=512, heads=4, kv_heads=2, vocabulary=512, context=4096),
    Shape(layers=8, width=256, inner=1024, heads=4, kv_heads=2, vocabulary=2048, context=4096),
    Shape(layers=8, width=512, inner=1024, heads=8, kv_heads=4, vocabulary=2048, context=4096),
    Shape(layers=8, width=512, inner=2048, heads=8, kv_heads=4, vocabulary=8192, context=4096),
    Shape(layers=12, width=1024, inner=3072, heads=16, kv_heads=8, vocabulary=8192, context=4096),
)


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"keep them in {RESULTS.name}")
    asked = parser.parse_args()
    toolchain, most = find_toolchain(), physical_cores()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, shape in enumerate(SHAPES):
            model = Path(folder) / f"{number}.gguf"
            nbytes = write_random(model, shape, toolchain.source / "gguf-py")
            alone = speeds(toolchain, model, most)
            with busy():
                beside = speeds(toolchain, model, most)
            row = {
                "nbytes": nbytes,
                "useful_threads": useful_threads(nbytes, most),
                "alone": alone,
                "beside a busy process": beside,
            }
            rows.append(row)
            print(row, file=sys.stderr)
    machine = f"{host_facts().model}, {most} cores, {platform.system()}"
    found = {"machine": machine, "tokens a second, with 1 thread and all": rows}
    print(json.dumps(found, indent=2))
    if asked.write:
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")


def speeds(toolchain: Toolchain, model: Path, most: int) -> dict[str, list[float]]:
    """Tokens a second of a prompt and of an answer, with one thread and with `most`."""
    found: dict[str, list[float]] = {"prompt": [], "answer": []}
    for threads in (1, most):
        command = [
            toolchain.tool("llama-bench"), "-m", model, "-t", threads,
            "-p", PROMPT, "-n", ANSWER, "-r", ROUNDS, "-o", "csv",
        ]  # fmt: skip
        done = subprocess.run(
            [str(part) for part in command],
            env=os.environ | {"GOMP_SPINCOUNT": SPINS},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        for row in csv.DictReader(done.stdout.splitlines()):
            kind = "prompt" if row["n_prompt"] != "0" else "answer"
            found[kind].append(round(float(row["avg_ts"]), 1))
    return found


@contextmanager
def busy() -> Iterator[None]:
    """Runs a process that computes all the time."""
    spin = f"import time\nend = time.monotonic() + {BUSY_S}\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as running:
        try:
            yield
        finally:
            running.kill()


if __name__ == "__main__":
    main()
