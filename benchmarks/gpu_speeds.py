"""How fast a GPU's engine answers, in the chat and through the server, against llama.cpp's tools.

A part of benchmarks/gpu.py.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.streams import PROMPT, Target
from exporter.core.errors import DecantError
from exporter.core.machine import physical_cores
from exporter.llamacpp.toolchain import find_toolchain
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.local import LocalEngine
from runtime.engine.memory_fit import FitOptions
from runtime.engine.openai_client import Delta, Stopped
from runtime.engine.opened_model import open_model
from runtime.engine.selection import AdapterSelection
from tests.runtime.gateway.conftest import serving, until

CHECKOUT = Path(__file__).resolve().parents[1]
CONTEXT, SLOTS, TOKENS, ROUNDS = 512, 32, 48, 3
STREAMS = (1, 8, 32)
LONG = 256  # tokens of an answer whose speed is compared with llama-bench's
VARIANTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "bare": (0, ()),
    "idle_slots_copied": (1 << 30, ("--cache-idle-slots",)),
    "prompt_cache": (1 << 30, ()),
    "sampled_on_gpu": (0, ("--backend-sampling",)),
}
"""The bare engine's ways to run: bytes of its prompt cache, and flags."""


@dataclass(frozen=True, slots=True)
class Run:
    """Where the run keeps its files, and how large it is."""

    folder: Path
    is_tiny: bool

    @property
    def model(self) -> Path:
        return self.folder / "base.gguf"

    @property
    def rounds(self) -> int:
        return 1 if self.is_tiny else ROUNDS


def bench(run: Run) -> dict[str, Any]:
    return {"prompt_per_s": benched(run, 512, 0), "decode_per_s": benched(run, 0, 128)}


def benched(run: Run, prompt: int, tokens: int) -> float:
    argv = [
        str(find_toolchain().tool("llama-bench")), "-m", str(run.model), "-p", str(prompt),
        "-n", str(tokens), "-r", "2", "-t", str(physical_cores()), "-o", "json",
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


class Flagged(LocalEngine):
    """The chat's engine with more flags."""

    flags: tuple[str, ...] = ()

    @property
    def spec(self) -> ServerSpec:
        return replace(super().spec, extra=self.flags)


def chat(run: Run) -> dict[str, Any]:
    """Tokens a second as the chat sees them against llama-bench's, and the wait for a process."""
    tokens = 16 if run.is_tiny else LONG
    found: dict[str, Any] = {}
    for name, flags in (("as_it_is", ()), ("sampled_on_gpu", ("--backend-sampling",))):
        engine = Flagged(open_model(run.model), FitOptions(context=1024))
        engine.flags = flags
        try:
            for kind, temperature in (("greedy", 0.0), ("default", None)):
                speeds = [arriving(engine, tokens, temperature) for _ in range(run.rounds + 1)][1:]
                bare = benched(run, 0, tokens)
                per_s = statistics.median(speeds)
                found[f"{name}_{kind}"] = {
                    "decant_per_s": per_s, "bench_per_s": bare, "ratio": per_s / bare
                }  # fmt: skip
            found["lines"] = engine.fit.lines()
        finally:
            engine.stop()
    return found | {"first_byte": first_bytes(run)}


def arriving(engine: LocalEngine, tokens: int, temperature: float | None) -> float:
    """Tokens a second from the first piece to the last."""
    settings: dict[str, object] = {"max_tokens": tokens, "ignore_eos": True}
    if temperature is not None:
        settings["temperature"] = temperature
    moments, count = [], 0
    for piece in engine.answer([{"role": "user", "content": PROMPT}], settings, AdapterSelection()):
        if isinstance(piece, Delta):
            moments.append(time.monotonic())
        if isinstance(piece, Stopped):
            count = piece.tokens
    return (count - 1) / (moments[-1] - moments[0])


def first_bytes(run: Run) -> dict[str, float]:
    """Seconds from a process' start to its first byte, ours and llama-completion's."""
    ours = [
        sys.executable, "-m", "exporter", "chat", str(run.model), "-p", PROMPT,
        "--ctx", "512", "-n", "4", "--temperature", "0",
    ]  # fmt: skip
    theirs = [
        str(find_toolchain().tool("llama-completion")), "-no-cnv", "-m", str(run.model),
        "-p", PROMPT, "-c", "512", "-n", "4", "--temp", "0", "--no-display-prompt",
    ]  # fmt: skip
    taken: dict[str, list[float]] = {"decant_s": [], "llama_completion_s": []}
    for _ in range(run.rounds):
        for name, argv in (("decant_s", ours), ("llama_completion_s", theirs)):
            began = time.monotonic()
            with subprocess.Popen(
                argv, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ) as process:  # fmt: skip
                assert process.stdout is not None
                process.stdout.read(1)
                taken[name].append(time.monotonic() - began)
                process.kill()
    return {name: statistics.median(values) for name, values in taken.items()}


def speed(run: Run) -> dict[str, Any]:
    """`decant serve` and the bare engine in its variants, in turns, at 1, 8 and 32 streams."""
    with ExitStack() as stack:
        targets, failed = {}, {}
        for name, (cache, flags) in VARIANTS.items():
            spec = ServerSpec(
                run.model, CONTEXT, physical_cores(), SLOTS, prompt_cache=cache,
                use_socket=False, extra=flags,
            )  # fmt: skip
            try:
                server = stack.enter_context(Server(spec, find_toolchain()))
                targets[name] = Target(server.port or 0, server.key)
                asked(targets[name], SLOTS)
            except (DecantError, subprocess.SubprocessError) as error:
                targets.pop(name, None)
                failed[name] = f"{error} {getattr(error, 'stderr', '')}"[-1500:]
        more = ("--parallel", SLOTS, "--ctx", CONTEXT)
        served = stack.enter_context(serving(run.folder, run.model, *more))
        assert until(lambda: served.get("/readyz")[0] == 200, 120), served.log.read_text()[-2000:]
        targets["decant"] = Target(served.port)
        asked(targets["decant"], SLOTS)
        found = {str(streams): in_turns(run, targets, streams) for streams in STREAMS}
        return found | {"not_measured": failed}


def in_turns(run: Run, targets: dict[str, Target], streams: int) -> dict[str, Any]:
    """Every target's medians over rounds, each round begun by another one."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in targets}
    names = list(targets)
    for number in range(run.rounds * (2 if streams < SLOTS else 1)):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken[name].append(asked(targets[name], streams))
    found: dict[str, Any] = {
        name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for name, rounds in taken.items()
    }
    found["ratio"] = found["decant"]["tokens_per_s"] / found["bare"]["tokens_per_s"]
    found["first_token_more_s"] = found["decant"]["first_token_s"] - found["bare"]["first_token_s"]
    return found


def asked(target: Target, streams: int) -> dict[str, float]:
    """One measurement, by a process that does nothing else."""
    argv = [
        sys.executable, str(CHECKOUT / "benchmarks" / "streams.py"), str(target.port),
        "--key", target.key, "--model", target.model, "--streams", str(streams),
        "--tokens", str(TOKENS),
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    return dict(json.loads(done.stdout))
