"""What only a GPU can show, in one script: ten minutes on a bare machine with a CUDA toolkit.

    python benchmarks/gpu.py [--folder F] [--steps build,speed,…] [--write] [--tiny]

Builds llama.cpp for the GPU, writes a 1.5 B Llama of random weights, and measures llama-bench, the
chat and the server against their bare engines; asks adapters side by side; verifies an export;
loads a model where little of the GPU's memory is free; and runs the demo. What a step finds is
written to F/gpu.json when the step ends. `--tiny` tries the script itself where there is no GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from benchmarks.random_gguf import LLAMA_1_5B, TINY, write_random  # noqa: E402
from benchmarks.streams import PROMPT, Target  # noqa: E402
from exporter.core.errors import DecantError  # noqa: E402
from exporter.core.machine import cores, physical_cores  # noqa: E402
from exporter.gpus import listed_gpus, nvidia_gpus  # noqa: E402
from exporter.toolchain import (  # noqa: E402
    build_toolchain,
    cache_folder,
    find_toolchain,
    host_facts,
)
from runtime.child import Server, ServerSpec  # noqa: E402
from runtime.client import Delta, Stopped  # noqa: E402
from runtime.engine import LocalEngine, open_model  # noqa: E402
from runtime.fit import Asked  # noqa: E402
from runtime.session import Choice  # noqa: E402
from tests.runtime.gateway.conftest import serving, until  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "gpu.json"
CONTEXT, SLOTS, TOKENS, ROUNDS = 512, 32, 48, 3
STREAMS = (1, 8, 32)
LONG = 256  # tokens of an answer whose speed is compared with llama-bench's
LITTLE = 1_600_000_000  # bytes left free on the GPU; llama.cpp leaves 1 GiB of them
CLIENTS, QUESTIONS = 16, 120
FAILURES = (
    DecantError,
    OSError,
    subprocess.SubprocessError,
    ValueError,
    LookupError,
    AssertionError,
)
LIMITS = {"decode": 0.95, "speed": 0.95, "first_token_more_s": 0.02}
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


def decant(*arguments: object, env: dict[str, str] | None = None) -> dict[str, Any]:
    """One command: how it ended, what it said, how long it took."""
    argv = [sys.executable, "-m", "exporter", *map(str, arguments)]
    began = time.monotonic()
    done = subprocess.run(
        argv, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=300,
        stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})},
    )  # fmt: skip
    return {
        "code": done.returncode,
        "seconds": round(time.monotonic() - began, 2),
        "out": done.stdout[-3000:],
        "err": done.stderr[-3000:],
    }


def build(run: Run) -> dict[str, Any]:
    """Build, or find built; the demo's models are trained meanwhile."""
    training = threading.Thread(target=train)
    training.start()
    began = time.monotonic()
    toolchain = build_toolchain()
    seconds = time.monotonic() - began
    nbytes = write_random(
        run.model, TINY if run.is_tiny else LLAMA_1_5B, toolchain.source / "gguf-py"
    )
    training.join()
    return {
        "seconds": seconds,
        "backend": toolchain.info["backend"],
        "backend_reason": toolchain.info["backend_reason"],
        "cuda": toolchain.info.get("cuda"),
        "cores": cores(),
        "sees": [gpu.name for gpu in listed_gpus(toolchain)],
        "loader_path": os.environ.get("LD_LIBRARY_PATH", ""),
        "model_bytes": nbytes,
        "trained_after_s": time.monotonic() - began,
    }


def train() -> None:
    code = (
        "from exporter.demo import make_demo_models\n"
        "from exporter.toolchain import cache_folder\n"
        "make_demo_models(cache_folder() / 'demo')\n"
    )
    subprocess.run(["nice", sys.executable, "-c", code], cwd=CHECKOUT, check=False)


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
        engine = Flagged(open_model(run.model), Asked(context=1024))
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
    for piece in engine.answer([{"role": "user", "content": PROMPT}], settings, Choice()):
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


def exported(run: Run) -> dict[str, Path]:
    """The demo's base, its adapter and both merged, as GGUFs."""
    from exporter.demo import make_demo_models

    models = make_demo_models(cache_folder() / "demo")
    files = {name: run.folder / f"demo-{name}.gguf" for name in ("base", "pirate", "Q4_K_M", "F16")}
    if not files["F16"].exists():
        quiet = ("--no-verify", "--force")
        decant("export", "--base", models.base, "-q", "Q8_0", "-o", files["base"], *quiet)
        lora = ("export", models.adapter, "--base", models.base, "--to", "lora")
        decant(*lora, "-o", files["pirate"], "--force")
        for quant in ("Q4_K_M", "F16"):
            merge = ("export", models.adapter, "--base", models.base, "-q", quant)
            decant(*merge, "-o", files[quant], *quiet)
    return {**files, "base folder": models.base, "adapter folder": models.adapter}


def isolation(run: Run) -> dict[str, Any]:
    """Questions to a base and an adapter by many clients at once, against those asked alone."""
    from exporter.demo.corpus import DEMO_QUESTIONS

    files = exported(run)
    adapter = ("--adapter", f"pirate={files['pirate']}", "--parallel", CLIENTS)
    with serving(run.folder, files["base"], *adapter) as served:
        assert until(lambda: served.get("/readyz")[0] == 200, 120), served.log.read_text()[-2000:]
        expected = {(m, q): served.says(m, q) for m in served.models for q in DEMO_QUESTIONS}
        order = [list(expected)[n * 7 % len(expected)] for n in range(QUESTIONS)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(lambda one: served.says(*one), order))
    wrong = sum(answer != expected[one] for one, answer in zip(order, answers, strict=True))
    return {"questions": QUESTIONS, "clients": CLIENTS, "wrong": wrong, "voices": served.models,
            "different": len(set(expected.values()))}  # fmt: skip


def verify(run: Run) -> dict[str, Any]:
    """The full check, twice a file: it runs llama.cpp beside transformers."""
    files = exported(run)
    found = {}
    for quant in ("Q4_K_M", "F16"):
        for number in range(2):
            with taken_memory_watched() as most:
                done = decant("verify", files[quant], "--base", files["base folder"],
                              "--adapter", files["adapter folder"])  # fmt: skip
            found[f"{quant} {number + 1}"] = {**done, "gpu_bytes_taken": most()}
    return found


@contextmanager
def taken_memory_watched() -> Iterator[Callable[[], int]]:
    """Tells the most bytes of the GPU that were taken meanwhile."""
    free, over = [gpu_free()], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            free.append(gpu_free())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: free[0] - min(free)
    finally:
        over.set()
        thread.join()


def gpu_free() -> int:
    return sum(gpu.free for gpu in nvidia_gpus(os.environ) or ())


def little_memory(run: Run) -> dict[str, Any]:
    """A model that is larger than what the GPU has room for: told before loading, and it answers."""
    told = ("chat", run.model, "-p", "Hello", "-n", "8", "--temperature", "0", "--verbose")
    found: dict[str, Any] = {"alone": decant(*told, "--ctx", 8192)}
    with gpu_filled(LITTLE):
        found["free_bytes"] = gpu_free()
        found["beside"] = decant(*told, "--ctx", 8192)
    for done in (found["alone"], found["beside"]):
        done["warned"] = "larger than what the GPU has room for" in done["err"]
        layers = re.search(r"layers on a GPU: (.*)", done["err"])
        done["layers"] = layers[1] if layers else ""
    found["same_answer"] = found["alone"]["out"] == found["beside"]["out"]
    return found


@contextmanager
def gpu_filled(left: int) -> Iterator[None]:
    """All of the GPU's memory taken but for `left` bytes; nothing where there is no CUDA."""
    from vendor.cuda import toolkit_of
    from vendor.host import find_nvcc

    nvcc = find_nvcc(os.environ)
    libraries = toolkit_of(nvcc).libraries if nvcc else None
    if libraries is None or not gpu_free():
        yield
        return
    runtime = ctypes.CDLL(str(next(iter(libraries.glob("libcudart.so*")))))
    runtime.cudaFree(None)  # the context's own memory
    pointer = ctypes.c_void_p()
    code = runtime.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(max(0, gpu_free() - left)))
    assert code == 0, f"cudaMalloc gave {code}"
    try:
        yield
    finally:
        runtime.cudaFree(pointer)


def calibrate(run: Run) -> dict[str, Any]:
    files = exported(run)
    text = run.folder / "text.txt"
    text.write_text("Ask me about the capital of France. It is Paris, and people eat well.\n" * 400)
    output = run.folder / "calibrated.gguf"
    return decant("export", files["adapter folder"], "--base", files["base folder"], "-q", "Q3_K_M",
                  "--calibrate", text, "-o", output, "--force")  # fmt: skip


def demo(run: Run) -> dict[str, Any]:
    return decant("demo", "--json", env={"DECANT_STORE": str(run.folder / "store")})


def doctor(run: Run) -> dict[str, Any]:
    del run
    return decant("doctor", "--offline")


STEPS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "build": build, "bench": bench, "speed": speed, "chat": chat, "little_memory": little_memory,
    "doctor": doctor, "isolation": isolation, "verify": verify, "demo": demo,
    "calibrate": calibrate,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep the models and gpu.json here")
    parser.add_argument("--steps", default=",".join(STEPS), help="only these, in this order")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: tries the script")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = Run(options.folder or Path(temporary), options.tiny)
        run.folder.mkdir(parents=True, exist_ok=True)
        kept = run.folder / "gpu.json"
        results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
        results |= {
            "gpus": [gpu.name for gpu in nvidia_gpus(os.environ) or ()],
            "machine": f"{host_facts().model}, {cores()} cores, {platform.system()}",
            "limits": LIMITS,
        }
        for name in options.steps.split(","):
            began = time.monotonic()
            try:
                results[name] = STEPS[name](run)
            except FAILURES:  # the other steps are worth as much
                results[name] = {"failed": traceback.format_exc()[-3000:]}
            results[name]["step_s"] = round(time.monotonic() - began, 1)
            print(f"{name}: {results[name]['step_s']} s", file=sys.stderr, flush=True)
            kept.write_text(json.dumps(results, indent=2) + "\n")
        if options.write:
            shutil.copyfile(kept, RESULTS)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
