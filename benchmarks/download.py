"""The downloader: its fault table, and its speed beside `hf download` and aria2c, in one run.

    python benchmarks/download.py [--faults] [--speed] [--only TEXT] [--aria2c PATH] [--write]

Everything is on 127.0.0.1: the hubs are tests/support/fake_hub.py, run by this process.
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
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))
os.environ["HF_HUB_OFFLINE"] = "0"

from tests.support.fake_hub import FakeHub  # noqa: E402
from tests.support.hub_files import REPO, FakeFile, Faults, random_bytes  # noqa: E402
from tests.support.hub_rows import MIRRORS, ROWS  # noqa: E402
from tests.support.hub_stage import Stage  # noqa: E402

HELD = 512 << 20  # bytes
RESULTS = CHECKOUT / "benchmarks" / "download.json"


def faults(only: str) -> dict[str, dict[str, object]]:
    """The fault table with the limits that users have."""
    results: dict[str, dict[str, object]] = {}
    for fault, row in (ROWS | MIRRORS).items():
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


def measure(argv: list[str], env: dict[str, str]) -> tuple[float, int]:
    """Seconds and peak memory of a process that must succeed."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            argv, cwd=CHECKOUT, env={**os.environ, **env}, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(argv)} failed:\n{log.read().decode()[-3000:]}")
    rss = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
    return time.monotonic() - began, rss


@contextmanager
def served(kind: str, **faults: object) -> Iterator[str]:
    """A hub in a process of its own, so that nobody inherits its memory; gives its address."""
    argv = [sys.executable, __file__, "--serve", kind, "--faults-of-hub", json.dumps(faults)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def serve(kind: str, faults: dict[str, object]) -> None:
    """Be that hub, until terminated."""
    files: dict[str, FakeFile | bytes] = {}
    match kind:
        case "large":
            files = {f"model-{i}.safetensors": random_bytes((1 << 30) // 3, i) for i in range(3)}
        case "small":
            files = {
                f"part{i:03}.json": FakeFile(random_bytes(2000 + i, i), is_lfs=False)
                for i in range(200)
            }
        case _:
            files = {"model.safetensors": random_bytes(HELD)}
    with FakeHub(files) as hub:
        hub.faults = Faults(**faults)
        print(hub.url, flush=True)
        threading.Event().wait()


def commands(url: str, folder: Path, aria2c: str | None) -> dict[str, list[str]]:
    """The same download by each program."""
    here = Path(sys.executable).parent
    programs = {
        "decant": [sys.executable, "-m", "exporter", "pull", REPO, "--endpoint", url],
        "hf": [str(here / "hf"), "download", REPO],
    }
    if aria2c:
        names = [f"model-{i}.safetensors" for i in range(3)]
        listing = folder / "urls.txt"
        listing.write_text(
            "".join(f"{url}/{REPO}/resolve/main/{name}\n  out={name}\n" for name in names)
        )
        programs["aria2c"] = [
            aria2c, "-x", "4", "-s", "4", "-j", "3", "-k", "1M", "--file-allocation=none",
            "--console-log-level=error", "--summary-interval=0", "-d", str(folder / "cache"),
            "-i", str(listing),
        ]  # fmt: skip
    return programs


def race(kind: str, runs: int, aria2c: str | None) -> dict[str, dict[str, float]]:
    """Best time and highest peak memory of each program, taking turns."""
    times: dict[str, list[float]] = {}
    peaks: dict[str, list[int]] = {}
    with served(kind) as url, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = {"HF_HOME": str(folder / "cache"), "HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1"}
        for _ in range(runs):
            for program, argv in commands(url, folder, aria2c).items():
                shutil.rmtree(folder / "cache", ignore_errors=True)
                seconds, rss = measure(argv, env)
                times.setdefault(program, []).append(seconds)
                peaks.setdefault(program, []).append(rss)
    return {
        program: {"seconds": round(min(times[program]), 2), "peak_rss": max(peaks[program])}
        for program in times
    }


def speed(aria2c: str | None) -> dict[str, object]:
    large = race("large", 3, aria2c)
    print_race("1 GiB in 3 files, no faults", large)
    small = race("small", 3, None)
    print_race("200 small files", small)
    return {"large": large, "small": small, "held": held()}


def held() -> dict[str, float]:
    """A server that gives 1 MiB/s a connection, 16 connections in all."""
    with served("held", rate=1 << 20, slots=16) as url, tempfile.TemporaryDirectory() as folder:
        argv = [
            sys.executable, "-m", "exporter", "pull", REPO, "--endpoint", url,
            "--connections", "16",
        ]  # fmt: skip
        seconds, _ = measure(argv, {"HF_HOME": folder})
    given = HELD / seconds / (16 << 20)
    print(f"16 x 1 MiB/s: {given:.3f} of what it gives (at least 0.95), {seconds:.1f} s")
    return {"seconds": round(seconds, 2), "of_what_it_gives": round(given, 3)}


def print_race(title: str, result: dict[str, dict[str, float]]) -> None:
    ours = result["decant"]
    for program, cost in result.items():
        print(
            f"{title}: {program:8} {cost['seconds']:6.2f} s, {cost['peak_rss'] / 1e6:4.0f} MB;"
            f" decant takes {ours['seconds'] / cost['seconds']:.2f} x",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", action="store_true", help="only the fault table")
    parser.add_argument("--speed", action="store_true", help="only the speed")
    parser.add_argument("--only", default="", help="only rows with this in their name")
    parser.add_argument("--aria2c", default=shutil.which("aria2c"))
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--faults-of-hub", default="{}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, json.loads(options.faults_of_hub))
    results: dict[str, object] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    if not options.faults:  # first: a child's peak memory counts from what this process has
        results["speed"] = speed(options.aria2c)
    if not options.speed:
        results["faults"] = faults(options.only)
    if options.write:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
