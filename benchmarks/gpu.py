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
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from benchmarks.gpu_speeds import Run, bench, chat, speed  # noqa: E402
from exporter.core.errors import DecantError  # noqa: E402
from exporter.core.machine import cores  # noqa: E402
from exporter.llamacpp.gpus import listed_gpus, nvidia_gpus  # noqa: E402
from exporter.llamacpp.toolchain import (  # noqa: E402
    build_toolchain,
    cache_folder,
    find_toolchain,
    host_facts,
)
from tests.runtime.gateway.conftest import serving, until  # noqa: E402
from tests.support.random_gguf import LLAMA_1_5B, LLAMA_8B, TINY, write_random  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "gpu.json"
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


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    code: int
    seconds: float
    out: str
    err: str

    def facts(self) -> dict[str, Any]:
        """For the results, which name no folder; its last words only where it failed."""
        found = {"code": self.code, "seconds": round(self.seconds, 2)}
        return found | ({"error": self.err[-2000:]} if self.code else {})


def decant(*arguments: object, env: dict[str, str] | None = None) -> Ended:
    """Run one command to its end."""
    argv = [sys.executable, "-m", "exporter", *map(str, arguments)]
    began = time.monotonic()
    done = subprocess.run(
        argv, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=300,
        stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})},
    )  # fmt: skip
    return Ended(done.returncode, time.monotonic() - began, done.stdout, done.stderr)


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
        "cuda": toolchain.info.get("cuda"),
        "cores": cores(),
        "sees": [gpu.name for gpu in listed_gpus(toolchain)],
        "model_bytes": nbytes,
        "trained_after_s": time.monotonic() - began,
    }


def train() -> None:
    code = (
        "from exporter.demo import make_demo_models\n"
        "from exporter.llamacpp.toolchain import cache_folder\n"
        "make_demo_models(cache_folder() / 'demo')\n"
    )
    subprocess.run(["nice", sys.executable, "-c", code], cwd=CHECKOUT, check=False)


def larger(run: Run) -> dict[str, Any]:
    """The chat with 8 billion weights: a token takes longer, and sampling it does not."""
    other = Run(run.folder / "larger", run.is_tiny)
    other.folder.mkdir(exist_ok=True)
    gguf_py = find_toolchain().source / "gguf-py"
    nbytes = write_random(other.model, TINY if run.is_tiny else LLAMA_8B, gguf_py)
    return {"model_bytes": nbytes, **chat(other)}


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
            logits = re.search(r"^logits\t(\w+)\t(KL [^;]+)", done.out, re.MULTILINE)
            found[f"{quant} {number + 1}"] = {
                **done.facts(), "logits": logits[0].replace("\t", " ") if logits else "",
                "gpu_bytes_taken": most(),
            }  # fmt: skip
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
    """A model that the GPU has no room for: told before loading, and it answers."""
    told = ("chat", run.model, "-p", "Hello", "-n", "8", "--temperature", "0", "--verbose")
    found: dict[str, Any] = {"alone": placed(decant(*told, "--ctx", 8192))}
    with gpu_filled(LITTLE):
        found["free_bytes"] = gpu_free()
        found["beside"] = placed(decant(*told, "--ctx", 8192))
    return found


def placed(done: Ended) -> dict[str, Any]:
    """What was said of the GPU before the model was loaded."""
    said = re.search(r"warning: (.*larger than what the GPU has room for.*)", done.err)
    layers = re.search(r"layers on a GPU: (.*)", done.err)
    return {
        **done.facts(), "said": said[1] if said else "", "layers": layers[1] if layers else "",
        "answered": bool(done.out.strip()),
    }  # fmt: skip


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
    done = decant("export", files["adapter folder"], "--base", files["base folder"], "-q", "Q3_K_M",
                  "--calibrate", text, "-o", output, "--force")  # fmt: skip
    return done.facts()


def demo(run: Run) -> dict[str, Any]:
    done = decant("demo", "--json", env={"DECANT_STORE": str(run.folder / "store")})
    told = json.loads(done.out) if done.code == 0 else {}
    return done.facts() | {name: told.get(name) for name in ("agreeing", "differing")}


def doctor(run: Run) -> dict[str, Any]:
    del run
    checks = json.loads(decant("doctor", "--offline", "--json").out)
    return {"GPU": [check["found"] for check in checks if check["name"] == "GPU"]}


STEPS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "build": build, "bench": bench, "speed": speed, "chat": chat, "larger": larger,
    "little_memory": little_memory, "doctor": doctor, "isolation": isolation, "verify": verify,
    "demo": demo, "calibrate": calibrate,
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
