"""`decant chat` against llama.cpp's own tools, in one run: time to first token, speed, memory.

    python benchmarks/chat.py [--folder F] [--rounds N] [--write]

A ~1 B-parameter Llama of random weights in Q4_K_M with two adapters, and the trained demo model.
Every figure is the median of rounds in which both sides take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from benchmarks.export import SHAPE  # noqa: E402
from exporter.core.machine import physical_cores  # noqa: E402
from exporter.llamacpp.toolchain import cache_folder, find_toolchain, host_facts  # noqa: E402
from runtime.engine.adapters import Adapter  # noqa: E402
from runtime.engine.local import LocalEngine  # noqa: E402
from runtime.engine.memory_fit import FitOptions  # noqa: E402
from runtime.engine.openai_client import Delta, Stopped, ask  # noqa: E402
from runtime.engine.opened_model import open_model  # noqa: E402
from runtime.engine.selection import AdapterSelection  # noqa: E402
from tests.support.terminal import chat as chat_in_terminal  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "chat.json"
PROMPT = "Tell me about the capital of France, its rivers, and what people eat there in winter."
CONTEXT, TOKENS = 512, 96
PIECES, FIRST_TEXT = 320, 261  # of tests/support/tiny.py's tokenizer: before it marks and bytes
LIMITS = {
    "first_token_1b": 1.25,
    "first_token_demo_more_s": 0.4,
    "decode": 0.97,
    "switch_s": 0.05,
    "repl_rss_bytes": 90_000_000,
}


def first_byte_s(argv: list[str]) -> float:
    """From the start of a process to the first byte on its standard output."""
    began = time.monotonic()
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        took = time.monotonic() - began
        process.kill()
    return took


def first_tokens(model: Path, rounds: int) -> dict[str, float]:
    """Seconds to the first token of `decant chat -p` and of llama-completion."""
    ours = [
        sys.executable, "-m", "exporter", "chat", str(model), "-p", PROMPT,
        "--ctx", str(CONTEXT), "-n", "8", "--temperature", "0",
    ]  # fmt: skip
    theirs = [
        str(find_toolchain().tool("llama-completion")), "-no-cnv", "-m", str(model), "-p", PROMPT,
        "-c", str(CONTEXT), "-n", "8", "--temp", "0", "--no-display-prompt",
        "-t", str(physical_cores()),
    ]  # fmt: skip
    first_byte_s(ours), first_byte_s(theirs)  # both find the files in memory
    pairs = [(first_byte_s(ours), first_byte_s(theirs)) for _ in range(rounds)]
    decant, completion = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {
        "decant_s": decant,
        "llama_completion_s": completion,
        "ratio": statistics.median(a / b for a, b in pairs),
        "more_s": statistics.median(a - b for a, b in pairs),
    }


def speeds(model: Path, rounds: int) -> dict[str, float]:
    """Tokens a second, as they arrive here, against llama-bench's."""
    engine = LocalEngine(open_model(model), FitOptions(context=CONTEXT))
    try:
        pairs = [(arriving(engine), benched(model)) for _ in range(rounds)]
    finally:
        engine.stop()
    decant, bench = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {
        "decant_per_s": decant,
        "llama_bench_per_s": bench,
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def arriving(engine: LocalEngine) -> float:
    """Tokens a second from the first piece to the last, seen by the client."""
    settings = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
    moments, tokens = [], 0
    for piece in engine.answer([{"role": "user", "content": PROMPT}], settings, AdapterSelection()):
        moments.append(time.monotonic())
        if isinstance(piece, Stopped):
            tokens = piece.tokens
    return (tokens - 1) / (moments[-1] - moments[0])


def benched(model: Path) -> float:
    argv = [
        str(find_toolchain().tool("llama-bench")), "-m", str(model), "-p", "0", "-n", str(TOKENS),
        "-r", "1", "-t", str(physical_cores()), "-o", "json",
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def switches(model: Path, adapters: list[Path], rounds: int) -> dict[str, object]:
    """Seconds that a turn's first token comes later because the adapter is another one.

    Both kinds of turn compute the whole prompt: what is measured is the switch alone.
    """
    loaded = tuple(Adapter(f"a{n}", path, 1.0) for n, path in enumerate(adapters))
    engine = LocalEngine(open_model(model, loaded), FitOptions(context=CONTEXT))
    settings = {"temperature": 0, "max_tokens": 1, "cache_prompt": False}

    def first(name: str) -> float:
        pieces = ask(
            engine.start(),
            [{"role": "user", "content": "Hi"}],
            {**settings, **engine.vector(AdapterSelection(name))},
        )
        began = time.monotonic()
        for piece in pieces:
            if isinstance(piece, Delta):
                break
        took = time.monotonic() - began
        pieces.close()
        return took

    try:
        child = engine.start().process.pid
        first("a0"), first("a1")
        same, other = [], []
        for _ in range(rounds * 3):
            same.append(first("a0"))
            same.append(first("a0"))
            other.append(first("a1"))
            same.append(first("a1"))
            other.append(first("a0"))
        reloaded = engine.start().process.pid != child
    finally:
        engine.stop()
    return {
        "same_s": statistics.median(same),
        "other_s": statistics.median(other),
        "switch_s": statistics.median(other) - statistics.median(same),
        "reloaded": reloaded,
    }


def repl_rss(model: Path, adapter: Path) -> int:
    """Peak bytes of the REPL's own process after an answer, a comparison and a completion."""
    with tempfile.TemporaryDirectory() as home:
        settings = {"XDG_DATA_HOME": home}
        arguments = (model, "--adapter", f"a={adapter}", "-n", "8", "--temperature", "0")
        with chat_in_terminal(*arguments, **settings) as terminal:
            terminal.ready()
            terminal.enter("Hello there")
            terminal.send("/compare\r")
            terminal.until("keep 1 base")
            terminal.send("1\r")
            terminal.ready()
            terminal.send("/ada\t")
            terminal.until("/adapter")
            status = Path(f"/proc/{terminal.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024


def imports_torch(model: Path) -> bool:
    argv = [sys.executable, "-X", "importtime", "-m", "exporter", "chat", str(model), "-p", "hi"]
    done = subprocess.run([*argv, "-n", "1"], capture_output=True, text=True, check=True)
    return "| torch" in re.sub(" +", " ", done.stderr)


def make_model(folder: Path) -> tuple[Path, Path]:
    """A base whose every likely token is a text, as a real one's are, and an adapter for it."""
    base, adapter = folder / "base", folder / "adapter"
    if not (adapter / "adapter_config.json").exists():
        code = f"""
from pathlib import Path
from safetensors.torch import load_file, save_file
from tests.support.tiny import make_adapter, make_base
base = make_base(Path({str(base)!r}), **{SHAPE | {"vocab_size": PIECES}!r})
weights = load_file(base / "model.safetensors")
weights["lm_head.weight"][:{FIRST_TEXT}] = 0
save_file(weights, base / "model.safetensors", {{"format": "pt"}})
make_adapter(Path({str(adapter)!r}), base, r=16, lora_alpha=32)
"""
        subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKOUT, capture_output=True)
    return base, adapter


def prepare(folder: Path) -> tuple[Path, list[Path], Path]:
    """The 1 B model, two adapters as GGUFs, and the demo's fine-tune."""
    base, adapter = make_model(folder)
    model, demo = folder / "base-Q4_K_M.gguf", folder / "demo-Q4_K_M.gguf"
    loras = [folder / "a.lora.gguf", folder / "b.lora.gguf"]

    def decant(*arguments: object) -> None:
        argv = [sys.executable, "-m", "exporter", *map(str, arguments)]
        subprocess.run(argv, check=True, cwd=CHECKOUT, capture_output=True)

    if not model.exists():
        decant("export", "--base", base, "-o", model, "--no-verify")
    if not loras[0].exists():
        decant("export", adapter, "--base", base, "--to", "lora", "-o", loras[0])
    if not loras[1].exists():
        other = ("export", adapter, "--base", base, "--to", "lora", "--scale", "0.5")
        decant(*other, "-o", loras[1])
    if not demo.exists():
        from exporter.demo import make_demo_models

        models = make_demo_models(cache_folder() / "demo")
        decant("export", models.adapter, "--base", models.base, "-o", demo)
    return model, loras, demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep the models here")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model, loras, demo = prepare(folder)
        results = {
            "machine": f"{host_facts().model}, {os.cpu_count()} cores, {platform.system()}",
            "first_token_1b": first_tokens(model, options.rounds),
            "first_token_demo": first_tokens(demo, options.rounds),
            "decode": speeds(model, options.rounds),
            "switch": switches(model, loras, options.rounds),
            "repl_rss_bytes": repl_rss(model, loras[0]),
            "imports_torch": imports_torch(demo),
            "limits": LIMITS,
        }
    print(json.dumps(results, indent=2))
    if options.write:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    missed = missed_limits(results)
    for line in missed:
        print(f"missed: {line}")
    sys.exit(bool(missed))


def missed_limits(results: dict[str, Any]) -> list[str]:
    facts = {
        "first token of the 1 B model": results["first_token_1b"]["ratio"]
        <= LIMITS["first_token_1b"],
        "first token of the demo model": results["first_token_demo"]["more_s"]
        <= LIMITS["first_token_demo_more_s"],
        "tokens a second": results["decode"]["ratio"] >= LIMITS["decode"],
        "a switch of the adapter": results["switch"]["switch_s"] <= LIMITS["switch_s"]
        and not results["switch"]["reloaded"],
        "the REPL's memory": results["repl_rss_bytes"] <= LIMITS["repl_rss_bytes"],
        "torch is not imported": not results["imports_torch"],
    }
    return [name for name, holds in facts.items() if not holds]


if __name__ == "__main__":
    main()
