"""`decant serve` against the bare llama-server and llama-cpp-python's server, in one run.

    python benchmarks/serve.py [--folder F] [--rounds N] [--only turns|pauses] [--write]

A ~1 B-parameter Llama of random weights in Q4_K_M. The bare llama-server runs with the flags that
decant gives it, and both sides take turns; figures are medians of those turns.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from benchmarks.chat import prepare  # noqa: E402
from exporter.core.machine import physical_cores  # noqa: E402
from exporter.llamacpp.toolchain import find_toolchain, host_facts  # noqa: E402
from runtime.engine.llama_server import Server, ServerSpec  # noqa: E402
from runtime.gateway.scheduling.health import STEP_TOKENS  # noqa: E402
from tests.runtime.gateway.conftest import serving, until  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "serve.json"
CONTEXT, SLOTS, TOKENS = 512, 8, 48
SHORT, LONG = 8, 128
"""Tokens of an answer that is asked for beside another adapter's, and of that one."""
PROMPT_TOKENS = 2000
"""Of a prompt that is computed while another client's answer comes."""
STREAMS = (1, 4, 8)
PROMPT = "Tell me about the capital of France, its rivers, and what people eat there in winter."
LIMITS = {
    "first_token_more_s": 0.005,
    "speed": 0.95,
    "against_llama_cpp_python": 1.5,
    "gateway_rss_bytes": 80_000_000,
    "switch_s": 0.02,
    "cold": 1.2,
    "turns": 1.1,
    "pause": 0.5,
    "prompt": 1.05,
}
PACKAGES = ("fastapi", "uvicorn", "sse-starlette", "starlette-context", "pydantic-settings",
            "PyYAML", "numpy", "jinja2", "diskcache", "typing-extensions")  # fmt: skip
Target = tuple[int, dict[str, str]]  # a port, and headers


def stream(target: Target, body: dict[str, Any]) -> list[float]:
    """The moments at which an answer's pieces came, the first being when it was asked."""
    port, headers = target
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    moments = [time.monotonic()]
    data = json.dumps({"stream": True, "temperature": 0, **body}).encode()
    connection.request(
        "POST", "/v1/completions", data, {"Content-Type": "application/json", **headers}
    )
    with connection.getresponse() as response:
        assert response.status == 200, response.read()
        while line := response.readline():
            if line.startswith(b"data: {"):
                moments.append(time.monotonic())
    connection.close()
    return moments


def first_token_s(target: Target, model: str, prompt: str | list[int] = PROMPT) -> float:
    moments = stream(target, {"model": model, "prompt": prompt, "max_tokens": 1})
    return moments[1] - moments[0]


def tokens_per_s(target: Target, model: str, streams: int, *, tokens: int = TOKENS) -> float:
    """Of all streams together, from the first request to the last piece."""
    found: list[int] = []

    def one(number: int) -> None:
        body = {"model": model, "prompt": f"{number} {PROMPT}", "max_tokens": tokens}
        found.append(len(stream(target, {**body, "ignore_eos": True})) - 1)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(streams)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == streams
    return sum(found) / (time.monotonic() - began)


def in_turns(
    measure: Callable[[Target], float], ours: Target, theirs: Target, pairs: int
) -> list[tuple[float, float]]:
    """Both sides measured, each first in every other pair: a machine that slows favours none."""
    found = []
    for number in range(pairs):
        first, second = (ours, theirs) if number % 2 else (theirs, ours)
        measured = {id(first): measure(first), id(second): measure(second)}
        found.append((measured[id(ours)], measured[id(theirs)]))
    return found


@contextmanager
def bare(model: Path) -> Iterator[Server]:
    spec = ServerSpec(model, CONTEXT, physical_cores(), SLOTS, use_socket=False)
    with Server(replace(spec, extra=("--metrics",)), find_toolchain()) as server:
        yield server


def target_of(server: Server) -> Target:
    assert server.port is not None
    return server.port, {"Authorization": f"Bearer {server.key}"}


def against_bare(model: Path, folder: Path, rounds: int) -> dict[str, Any]:
    arguments = (model, "--parallel", SLOTS, "--ctx", CONTEXT)
    with bare(model) as server, serving(folder, *arguments) as served:
        assert until(lambda: served.get("/readyz")[0] == 200, 120)
        ours: Target = (served.port, {})
        theirs = target_of(server)
        first_token_s(ours, "base"), first_token_s(theirs, "base")
        pairs = in_turns(lambda one: first_token_s(one, "base"), ours, theirs, rounds * 6)
        speeds = {}
        for streams in STREAMS:

            def speed(target: Target, streams: int = streams) -> float:
                return tokens_per_s(target, "base", streams)

            taken = in_turns(speed, ours, theirs, rounds * 2)
            mine, bares = (statistics.median(side) for side in zip(*taken, strict=True))
            ratios = sorted(a / b for a, b in taken)
            speeds[str(streams)] = {
                "decant_per_s": mine, "bare_per_s": bares,
                "ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1],
            }  # fmt: skip
        status = Path(f"/proc/{served.process.pid}/status").read_text()
    mine, bares = (statistics.median(side) for side in zip(*pairs, strict=True))
    more = statistics.median(a - b for a, b in pairs)
    return {
        "first_token": {"decant_s": mine, "bare_s": bares, "more_s": more},
        "speed": speeds,
        "gateway_rss_bytes": int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024,
    }


def switches(model: Path, loras: list[Path], folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds that a first token comes later because the adapter is another one.

    Both kinds of requests compute the whole prompt: what is measured is the switch alone.
    """
    named = [text for n, path in enumerate(loras) for text in ("--adapter", f"a{n}={path}")]
    same, other = [], []
    more = ("--parallel", 1, "--ctx", CONTEXT, "--allow-field", "cache_prompt")
    with serving(folder, model, *named, *more) as served:
        assert until(lambda: served.get("/readyz")[0] == 200, 120)
        target: Target = (served.port, {})

        def first(name: str) -> float:
            body = {"model": f"base:{name}", "prompt": "Hi", "max_tokens": 1}
            moments = stream(target, {**body, "cache_prompt": False})
            return moments[1] - moments[0]

        first("a0"), first("a1")
        children = served.children()
        for _ in range(rounds * 3):
            same += [first("a1"), first("a1")]
            other.append(first("a0"))
            same.append(first("a0"))
            other.append(first("a1"))
        reloaded = served.children() != children
    more = statistics.median(other) - statistics.median(same)
    return {"switch_s": more, "reloaded": reloaded}


def turns(model: Path, loras: list[Path], folder: Path, rounds: int) -> dict[str, float]:
    """What two adapters cost one another, in seconds.

    A short answer of one adapter, alone and beside the other's long one; two long answers of
    different adapters, one after the other and at once.
    """
    named = [text for n, path in enumerate(loras) for text in ("--adapter", f"a{n}={path}")]
    times: dict[str, list[float]] = {name: [] for name in ("short", "beside", "in_turn", "at_once")}
    with serving(folder, model, *named, "--parallel", 2, "--ctx", CONTEXT) as served:
        assert until(lambda: served.get("/readyz")[0] == 200, 120)

        def answer(name: str, tokens: int) -> float:
            body = {"model": f"base:{name}", "prompt": PROMPT, "max_tokens": tokens}
            moments = stream((served.port, {}), {**body, "ignore_eos": True})
            return moments[-1] - moments[0]

        answer("a0", 1), answer("a1", 1)
        with ThreadPoolExecutor(2) as threads:
            for _ in range(rounds):
                times["short"].append(answer("a1", SHORT))
                long = threads.submit(answer, "a0", LONG)
                time.sleep(1 / 2)  # its prompt is computed by then
                times["beside"].append(answer("a1", SHORT))
                assert not long.done()
                long.result()
                times["in_turn"].append(answer("a0", LONG) + answer("a1", LONG))
                began = time.monotonic()
                list(threads.map(answer, ("a0", "a1"), (LONG, LONG)))
                times["at_once"].append(time.monotonic() - began)
    found = {f"{name}_s": statistics.median(values) for name, values in times.items()}
    pairs = zip(times["at_once"], times["in_turn"], strict=True)
    return {**found, "ratio": statistics.median(one / other for one, other in pairs)}


def pauses(model: Path, rounds: int) -> dict[str, float]:
    """The longest pause of an answer while another client's long prompt is computed, in seconds.

    Beside it the same with llama-server's own `--batch-size`, and the time of that prompt alone.
    """
    sides = {"": (), "_by_default": ("-b", str(STEP_TOKENS))}
    times: dict[str, list[float]] = {f"{n}{s}": [] for s in sides for n in ("pause", "prompt")}
    context = PROMPT_TOKENS + CONTEXT
    for number in range(rounds):
        for side, flags in sorted(sides.items(), reverse=bool(number % 2)):
            extra = (*flags, "--override-kv", f"llama.context_length=int:{context}")
            spec = ServerSpec(model, context, physical_cores(), 2, use_socket=False, extra=extra)
            with Server(spec, find_toolchain()) as server, ThreadPoolExecutor(1) as threads:
                target = target_of(server)
                one, other = (
                    [first + n % 100 for n in range(PROMPT_TOKENS)] for first in (100, 200)
                )
                times[f"prompt{side}"].append(first_token_s(target, "base", one))
                body = {"prompt": PROMPT, "max_tokens": CONTEXT // 2, "ignore_eos": True}
                answer = threads.submit(stream, target, body)
                time.sleep(1)  # it has begun by then
                first_token_s(target, "base", other)
                moments = answer.result()
                gaps = [after - before for before, after in itertools.pairwise(moments[1:])]
                times[f"pause{side}"].append(max(gaps))
    return {f"{name}_s": statistics.median(values) for name, values in times.items()}


def cold_starts(model: Path, folder: Path, rounds: int) -> dict[str, float]:
    """The first answer of a model that is not loaded, against llama-server's start and answer."""
    pairs = []
    for _ in range(rounds):
        # a second model, so that none is loaded before it is asked for
        beside = folder / "other.gguf"
        if not beside.exists():
            beside.symlink_to(model)
        with serving(folder, model, beside, "--parallel", SLOTS, "--ctx", CONTEXT) as served:
            began = time.monotonic()
            first_token_s((served.port, {}), "base")
            ours = time.monotonic() - began
        began = time.monotonic()
        with bare(model) as server:
            first_token_s(target_of(server), "base")
            theirs = time.monotonic() - began
        pairs.append((ours, theirs))
    mine, bares = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return {"decant_s": mine, "bare_s": bares, "ratio": ratio}


@contextmanager
def packaged_server(model: Path, folder: Path) -> Iterator[int]:
    """llama-cpp-python's own server over the same libraries; gives its port."""
    env_folder = folder / "venv"
    python = env_folder / "bin" / "python"
    if not python.exists():
        venv.create(env_folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    toolchain = find_toolchain()
    env = {
        **os.environ,
        "PYTHONPATH": str(toolchain.folder / "python"),
        "LLAMA_CPP_LIB_PATH": str(toolchain.library("llama").parent),
    }
    port = 18431
    argv = [
        python, "-m", "llama_cpp.server", "--model", model, "--host", "127.0.0.1",
        "--port", port, "--n_ctx", CONTEXT, "--n_threads", physical_cores(),
        "--n_threads_batch", physical_cores(), "--interrupt_requests", "false",
    ]  # fmt: skip
    with (folder / "packaged.log").open("wb") as log:
        process = subprocess.Popen(list(map(str, argv)), env=env, stdout=log, stderr=log)
    try:
        assert until(lambda: answers(port), 120), (folder / "packaged.log").read_text()[-2000:]
        yield port
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v1/models")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def against_packaged(model: Path, folder: Path, rounds: int) -> dict[str, float]:
    """Eight streams at once; requests are told not to break each other off, as they would."""
    arguments = (model, "--parallel", SLOTS, "--ctx", CONTEXT)
    with packaged_server(model, folder) as port, serving(folder, *arguments) as served:
        assert until(lambda: served.get("/readyz")[0] == 200, 120)
        pairs = [
            (tokens_per_s((served.port, {}), "base", 8), tokens_per_s((port, {}), "base", 8))
            for _ in range(rounds)
        ]
    mine, packaged = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return {"decant_per_s": mine, "packaged_per_s": packaged, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep the models here")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["turns", "pauses"], help="measure this part alone")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model, loras, _ = prepare(folder)
        results: dict[str, Any] = json.loads(RESULTS.read_text())
        if not options.only:
            results = {
                "machine": f"{host_facts().model}, {os.cpu_count()} cores, {platform.system()}",
                **against_bare(model, folder, options.rounds),
                "switch": switches(model, loras, folder, options.rounds),
                "cold": cold_starts(model, folder, options.rounds),
                "llama_cpp_python": against_packaged(model, folder, options.rounds),
            }
        if options.only != "pauses":
            results["turns"] = turns(model, loras, folder, options.rounds)
        if options.only != "turns":
            results["pauses"] = pauses(model, options.rounds)
        results["limits"] = LIMITS
    print(json.dumps(results, indent=2))
    if options.write:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    missed = missed_limits(results)
    for line in missed:
        print(f"missed: {line}")
    sys.exit(bool(missed))


def missed_limits(results: dict[str, Any]) -> list[str]:
    paused = results["pauses"]
    facts = {
        "first token": results["first_token"]["more_s"] <= LIMITS["first_token_more_s"],
        "the gateway's memory": results["gateway_rss_bytes"] <= LIMITS["gateway_rss_bytes"],
        "a switch": results["switch"]["switch_s"] <= LIMITS["switch_s"]
        and not results["switch"]["reloaded"],
        "a cold model": results["cold"]["ratio"] <= LIMITS["cold"],
        "turns": results["turns"]["ratio"] <= LIMITS["turns"],
        "a pause": paused["pause_s"] <= LIMITS["pause"] * paused["pause_by_default_s"],
        "a prompt": paused["prompt_s"] <= LIMITS["prompt"] * paused["prompt_by_default_s"],
        "llama-cpp-python's server": results["llama_cpp_python"]["ratio"]
        >= LIMITS["against_llama_cpp_python"],
    }
    for streams, found in results["speed"].items():
        facts[f"tokens a second at {streams}"] = found["ratio"] >= LIMITS["speed"]
    return [name for name, holds in facts.items() if not holds]


if __name__ == "__main__":
    main()
