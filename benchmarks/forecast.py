"""The time and memory that `--dry-run` predicts, against those of the export that follows.

    .venv/bin/python benchmarks/forecast.py [--folder F] [--rounds N] [--case NAME]... [--write]

The models have random bf16 weights and lie in memory when they are read. Truth is the wall time of
the command, and the largest memory of its process, as the kernel counts it. Beside them stand the
predictions for large models, which are headers alone; their bases would come from a disk as fast
as this one, which is measured by reading 2 GB that are not in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from benchmarks import export, memory  # noqa: E402
from benchmarks.large_shapes import LARGE, Large, make_large  # noqa: E402
from benchmarks.marked_part import write_part  # noqa: E402
from exporter.llamacpp.toolchain import cache_folder, find_toolchain, host_facts  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "forecast.json"
PAGE = CHECKOUT / "docs" / "scale.md"
MARKS = (
    "<!-- forecast: written by benchmarks/forecast.py --write -->\n",
    "<!-- end of forecast -->\n",
)
LIMIT = 0.20
"""The largest error, as a share of the truth."""
POLL_S = 0.02  # seconds between two looks at a process's memory
DISK_NBYTES = 2_000_000_000  # bytes read to measure the disk
CHUNK = 8 << 20  # bytes of one reading
MOE = memory.Case(
    memory.MOE
    | {"hidden_size": 1024, "intermediate_size": 1024, "num_local_experts": 16,
       "num_attention_heads": 16},
    {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    experts=16,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """A model and the options of its export."""

    model: str
    options: tuple[str, ...]


CASES = {
    "0.3 B": Case("llama-0.3b", ("-q", "Q4_K_M")),
    "1.2 B": Case("llama-3.2-1b", ("-q", "Q4_K_M")),
    "1.2 B, Q8_0": Case("llama-3.2-1b", ("-q", "Q8_0")),
    "1.2 B, F16, `--no-verify`": Case("llama-3.2-1b", ("-q", "F16", "--no-verify")),
    "1.2 B, `--merge-dtype base`, `--no-verify`": Case(
        "llama-3.2-1b", ("-q", "Q4_K_M", "--merge-dtype", "base", "--no-verify")
    ),
    "0.4 B of 16 experts, `--no-verify`": Case("moe", ("-q", "Q4_K_M", "--no-verify")),
}


def make(model: str, folder: Path) -> tuple[Path, Path]:
    """The base and the adapter of a case, made once per folder."""
    if model != "moe":
        return export.make_model(model, folder)
    base, adapter = folder / "moe", folder / "moe-adapter"
    if not (adapter / "adapter_config.json").exists():
        shutil.rmtree(base, ignore_errors=True)
        memory.make_adapter(adapter, memory.make_base(base, MOE), MOE)
    return base, adapter


def high_water(pid: int) -> int:
    """The largest memory so far of a process, in bytes; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    found = next((line for line in lines if line.startswith("VmHWM")), "VmHWM: 0 kB")
    return int(found.split()[1]) * 1024


def run(argv: list[str], env: dict[str, str]) -> tuple[float, int, dict[str, Any]]:
    """Seconds and memory of a command, and the JSON that it prints.

    Raises SystemExit if it fails.
    """
    began, most = time.monotonic(), 0
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(argv, stdout=out, stderr=err, cwd=CHECKOUT, env=env)
        while process.poll() is None:
            most = max(most, high_water(process.pid))
            time.sleep(POLL_S)
        took = time.monotonic() - began
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(argv)} failed:\n{err.read().decode()[-3000:]}")
        found: dict[str, Any] = json.loads(out.read())
    return took, most, found


def compare(case: Case, folder: Path) -> dict[str, float]:
    """One dry run, and the export after it."""
    base, adapter = make(case.model, folder)
    export.warm(base)
    output = folder / "out.gguf"
    argv = [sys.executable, "-m", "exporter", "export", str(adapter), "--base", str(base), "--json"]
    argv += ["--quiet", *case.options, "-o", str(output), "--force"]
    env = {**os.environ, "XDG_DATA_HOME": str(folder / "data")}
    shutil.rmtree(cache_folder() / "rates", ignore_errors=True)
    dry_s, _, found = run([*argv, "--dry-run"], env)
    again_s, _, found = run([*argv, "--dry-run"], env)
    took, most, _ = run(argv, env)
    output.unlink()
    expected = found["forecast"]
    return {
        "seconds": took,
        "expected_seconds": expected["seconds"],
        "time_error": expected["seconds"] / took - 1,
        "memory_nbytes": most,
        "expected_memory_nbytes": expected["memory_nbytes"],
        "memory_error": expected["memory_nbytes"] / most - 1,
        "dry_run_s": dry_s,
        "dry_run_again_s": again_s,
    }


def disk_rate(folder: Path) -> float:
    """Bytes a second that this disk gives, of a file that is not in memory."""
    path = folder / "disk"
    block = os.urandom(CHUNK)
    with path.open("wb") as file:
        for _ in range(DISK_NBYTES // CHUNK):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began, buffer = time.monotonic(), bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    took = time.monotonic() - began
    path.unlink()
    return DISK_NBYTES / took


def foresee(large: Large, folder: Path) -> dict[str, Any]:
    """What a dry run says of a model of headers, and what it takes."""
    base, adapter = make_large(folder, large)
    argv = [sys.executable, "-m", "exporter", "export", str(adapter), "--base", str(base), "--json"]
    argv += ["--quiet", "-q", "Q4_K_M", "-o", str(folder / "out.gguf"), "--dry-run"]
    took, most, found = run(argv, dict(os.environ))
    shutil.rmtree(folder)
    return {**found["forecast"], "dry_run_s": took, "dry_run_nbytes": most}


def duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def with_disk(found: dict[str, Any], rate: float) -> float:
    """Seconds of an export whose base comes from the disk, at `rate` bytes a second."""
    reading_s = found["base_nbytes"] / rate
    waiting = max(0.0, found["merging_s"] + reading_s - found["computing_s"])
    return float(found["seconds"] + waiting)


def large_table(found: dict[str, dict[str, Any]], rate: float) -> str:
    lines = [
        "| model, `Q4_K_M` | time | with an SSD of 3 GB/s | memory | base + result | dry run |",
        "|---" * 6 + "|",
    ]
    for name, one in found.items():
        lines.append(
            f"| {name} | {duration(with_disk(one, rate))} | {duration(with_disk(one, 3e9))}"
            f" | {one['memory_nbytes'] / 1e9:.1f} GB"
            f" | {one['base_nbytes'] / 1e9:,.0f} + {one['disk_nbytes'] / 1e9:,.0f} GB"
            f" | {one['dry_run_s']:.0f} s, {one['dry_run_nbytes'] / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


def error_table(rounds: dict[str, list[dict[str, float]]]) -> str:
    lines = [
        "| export | time | predicted | error | memory | predicted | error |",
        "|---" * 7 + "|",
    ]
    for name, runs in rounds.items():
        one = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        lines.append(
            f"| {name} | {one['seconds']:.1f} s | {one['expected_seconds']:.1f} s"
            f" | {one['time_error']:+.0%} | {one['memory_nbytes'] / 1e9:.2f} GB"
            f" | {one['expected_memory_nbytes'] / 1e9:.2f} GB | {one['memory_error']:+.0%} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="keep the models here between runs (8 GB)")
    parser.add_argument("--rounds", type=int, default=3, help="0: large models alone")
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--write", action="store_true", help="keep the figures, and in the page")
    asked = parser.parse_args()
    find_toolchain()
    machine = f"{host_facts().model}, {os.cpu_count()} cores, {platform.system()}"
    rounds: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="decant-bench-") as temporary:
        folder = asked.folder or Path(temporary)
        for _ in range(asked.rounds):
            for name in asked.case or CASES:
                rounds.setdefault(name, []).append(compare(CASES[name], folder))
                print(name, json.dumps(rounds[name][-1]), flush=True)
        rate = disk_rate(folder)
        large = {name: foresee(one, Path(temporary) / "large") for name, one in LARGE.items()}
    kept_in = f"[{RESULTS.name}](../benchmarks/{RESULTS.name})"
    shown = (
        f"{large_table(large, rate)}\n\n"
        f"On {machine}, whose disk reads {rate / 1e9:.1f} GB/s ({kept_in}).\n"
    )
    if rounds:
        shown += f"\n{error_table(rounds)}\n\nMedians of {asked.rounds} rounds.\n"
    print(shown)
    if asked.write:
        kept = {"machine": machine, "disk_rate": rate, "rounds": rounds, "large": large}
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        write_part(PAGE, MARKS, shown)
    errors = {
        (name, key): statistics.median(run[key] for run in runs)
        for name, runs in rounds.items()
        for key in ("time_error", "memory_error")
    }
    for (name, key), error in errors.items():
        if abs(error) > LIMIT:
            print(f"does not hold: {key} of {name} is {error:+.0%}, asked at most {LIMIT:.0%}")
    return 1 if any(abs(error) > LIMIT for error in errors.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
