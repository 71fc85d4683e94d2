"""The demo as other processors train it: does it hold what it promises, and do the tests?

    .venv/bin/python benchmarks/processors.py [--seeds 7 8] [--write] [-- PYTEST ARGUMENTS]

Torch sums in another order on each kind of processor, so that one training gives other weights.
ATEN_CPU_CAPABILITY makes it take another kind's way. Per capability and seed, in a cache folder
beside the user's: the demo is trained, `decant demo` asks its questions, and pytest runs with
the arguments that are given.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from exporter.core.machine import cores
from exporter.llamacpp.toolchain import cache_folder, host_facts

CAPABILITIES = {"default": "", "avx2": "avx2", "avx512": "avx512f"}  # and the flag each needs
RESULTS = Path(__file__).with_suffix(".json")
SHARED = ("llama.cpp", "sdists", "kquants")  # of the user's cache; the rest is made here
TRAIN = """
import sys
from pathlib import Path
from exporter import demo
from exporter.demo import train
name = demo.content_hash()
train.SEED = int(sys.argv[2])
demo.content_hash = lambda: name
demo.make_demo_models(Path(sys.argv[1]))
"""


def main() -> None:
    """Train and ask once per capability and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8])
    parser.add_argument("--capabilities", nargs="+", default=list(CAPABILITIES))
    parser.add_argument("--write", action="store_true", help=f"keep the results in {RESULTS.name}")
    parser.add_argument("pytest", nargs="*", help="what pytest runs with each demo")
    asked = parser.parse_args()
    host = host_facts()
    rows = []
    for capability in asked.capabilities:
        if CAPABILITIES[capability] not in host.features.split() and CAPABILITIES[capability]:
            print(f"{capability}: not on this processor", flush=True)
            continue
        for seed in asked.seeds:
            row = {"capability": capability, "seed": seed} | tried(capability, seed, asked.pytest)
            rows.append(row)
            print(row, flush=True)
    if asked.write:
        machine = {"cpu": host.model, "features": host.features, "cores": cores()}
        kept = {"machine": machine, "rows": with_earlier(rows, machine)}
        RESULTS.write_text(json.dumps(kept, indent=2) + "\n")
    if not all(row["demo"] == row["questions"] and row.get("pytest", 0) == 0 for row in rows):
        sys.exit(1)


def with_earlier(rows: list[dict[str, object]], machine: object) -> list[dict[str, object]]:
    """The rows, and those of other capabilities and seeds that this machine wrote before."""
    earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found = earlier["rows"] if earlier.get("machine") == machine else []
    by_case = {(row["capability"], row["seed"]): row for row in (*found, *rows)}
    return list(by_case.values())


def tried(capability: str, seed: int, arguments: list[str]) -> dict[str, object]:
    """What the demo says with one training, and how pytest ends."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        for name in SHARED:
            if (cache_folder() / name).exists():
                (cache / name).symlink_to(cache_folder() / name)
        env = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "DECANT_CACHE": folder}
        run = [sys.executable, "-c", TRAIN, str(cache / "demo"), str(seed)]
        subprocess.run(run, env=env, check=True)
        store = {**env, "DECANT_STORE": str(cache / "store")}
        asked = [sys.executable, "-m", "exporter", "demo", "--json", "--quiet"]
        done = subprocess.run(asked, env=store, check=False, capture_output=True, text=True)
        shown = json.loads(done.stdout) if done.stdout else {"rows": [], "agreeing": 0}
        found: dict[str, object] = {
            "questions": len(shown["rows"]),
            "demo": shown["agreeing"],
            "exit": done.returncode,
        }
        if arguments:
            argv = [sys.executable, "-m", "pytest", "-q", *arguments]
            found["pytest"] = subprocess.run(argv, env=env, check=False).returncode
        return found


if __name__ == "__main__":
    main()
