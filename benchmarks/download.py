"""The downloader: its fault table, and its speed beside `hf download` and aria2c, in one run.

    python benchmarks/download.py [--faults] [--speed] [--only TEXT] [--aria2c PATH] [--write]

Everything is on 127.0.0.1: the hubs are tests/fakes/hub.py, run by this process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))
os.environ["HF_HUB_OFFLINE"] = "0"

from tests.download.rows import ROWS, Stage  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "download.json"


def faults(only: str) -> dict[str, dict[str, object]]:
    """The fault table with the limits that users have."""
    results: dict[str, dict[str, object]] = {}
    for fault, row in ROWS.items():
        if only.lower() not in fault.lower():
            continue
        with tempfile.TemporaryDirectory() as folder:
            stage = Stage(Path(folder))
            with stage.stack:
                began = time.monotonic()
                try:
                    result = asdict(row(stage))
                except Exception as error:  # noqa: BLE001 - a row that breaks is a result
                    result = {"demanded": "", "measured": repr(error), "holds": False}
        results[fault] = result
        mark = "ok  " if result["holds"] else "FAIL"
        print(
            f"{mark} {fault:38} {result['demanded']:32} {result['measured']}"
            f"  [{time.monotonic() - began:.1f} s]",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", action="store_true", help="only the fault table")
    parser.add_argument("--speed", action="store_true", help="only the speed")
    parser.add_argument("--only", default="", help="only rows with this in their name")
    parser.add_argument("--aria2c", default=shutil.which("aria2c"))
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    results: dict[str, object] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    if not options.speed:
        results["faults"] = faults(options.only)
    if options.write:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
