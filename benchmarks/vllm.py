"""Many adapters over one base: vLLM and `decant serve`, beside each other on this processor.

    .venv/bin/python benchmarks/vllm.py [--counts N …] [--seconds S] [--write]

Both compute the demo's base in float32 with one thread, which is vLLM's choice for two cores. Both
have the same adapters: copies of two whose answers are known, so that each answer shows whether the
right one gave it. 16 clients ask for adapters by chance. vLLM is started as `decant export --to
vllm` says.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[0] = str(CHECKOUT)  # in place of this folder, where this file is called vllm

from benchmarks.marked_part import write_part  # noqa: E402
from exporter.demo import make_demo_models  # noqa: E402
from exporter.export import export  # noqa: E402
from exporter.formats.export_request import ExportRequest  # noqa: E402
from exporter.formats.gguf_lora import LoraRequest, export_lora  # noqa: E402
from exporter.formats.vllm import NamedAdapter, VllmRequest, export_for_vllm  # noqa: E402
from exporter.llamacpp.toolchain import cache_folder, find_toolchain, host_facts  # noqa: E402
from tests.runtime.conftest import PROMPTS, train_liar  # noqa: E402
from tests.runtime.gateway.conftest import serving, until  # noqa: E402
from tests.support.processes import descendants  # noqa: E402
from tests.support.vllm_adapters import Oracle  # noqa: E402
from tests.support.vllm_environment import VERSION  # noqa: E402
from tests.support.vllm_server import KV_GIB, vllm_serving  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "vllm.json"
DOCUMENT = CHECKOUT / "docs" / "scale.md"
MARKS = (
    "<!-- vllm: written by benchmarks/vllm.py --write -->\n",
    "<!-- end of vllm -->\n",
)
COUNTS = (1, 8, 32, 64)
CLIENTS, TOKENS, CONTEXT, WARM_S = 16, 24, 256, 4
HEADS = (" decant: answers/s | median | memory", " vLLM: answers/s | median | memory")
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Files:
    """What both serve."""

    base: Path
    gguf: Path
    adapters: tuple[Path, Path]
    """The two that are copied, as PEFT saved them."""
    ggufs: tuple[Path, Path]
    """The same as GGUF adapters."""
    answers: tuple[dict[str, str], dict[str, str]]
    """What each of the two answers to each prompt, as transformers and peft compute it."""


@dataclass
class Load:
    """Clients that ask for adapters by chance, each on one connection."""

    port: int
    count: int
    seconds: float
    answers: tuple[dict[str, str], dict[str, str]]
    took: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def run(self) -> None:
        threads = [threading.Thread(target=self.client, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def client(self, seed: int) -> None:
        dice = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            number, prompt = dice.randrange(self.count), dice.choice(PROMPTS)
            began = time.monotonic()
            text = answer(connection, f"base:a{number}", prompt)
            self.took.append(time.monotonic() - began)
            if text != self.answers[number % 2][prompt]:
                self.wrong.append(text)
        connection.close()


def answer(connection: http.client.HTTPConnection, model: str, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    body = {"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), JSON)
    with connection.getresponse() as response:
        found = json.loads(response.read())
    return str(found["choices"][0]["message"]["content"] if response.status == 200 else found)


def memory(pid: int) -> int:
    """The bytes that a process and its descendants hold, what they share counted once."""
    total = 0
    for one in (pid, *descendants(pid)):
        text = Path(f"/proc/{one}/smaps_rollup").read_text()
        total += int(text.partition("\nPss:")[2].split()[0]) << 10
    return total


def measured(
    files: Files, count: int, seconds: float, pid: int, port: int, ready_s: float
) -> dict[str, Any]:
    """The figures of a server that is ready."""
    warm, load = (Load(port, count, one, files.answers) for one in (WARM_S, seconds))
    warm.run()
    load.run()
    return {
        "ready_s": round(ready_s, 1),
        "requests_per_s": round(len(load.took) / seconds, 1),
        "p50_ms": round(1000 * statistics.median(load.took), 1),
        "answers": len(load.took),
        "wrong": len(load.wrong) + len(warm.wrong),
        "memory_bytes": memory(pid),
    }


def with_decant(files: Files, root: Path, count: int, seconds: float) -> dict[str, Any]:
    """The figures of `decant serve` with so many adapters."""
    places = [copied(files.ggufs[n % 2], root / "ggufs" / f"a{n}.gguf") for n in range(count)]
    pairs = ", ".join(f"a{n} = {json.dumps(str(place))}" for n, place in enumerate(places))
    config = root / f"{count}.toml"
    config.write_text(
        f"[[model]]\npath = {json.dumps(str(files.gguf))}\nadapters = {{ {pairs} }}\n"
    )
    began = time.monotonic()
    # one thread: several that wait for each other's turn on busy cores would be measured instead
    arguments = ("--config", config, "--parallel", CLIENTS, "--ctx", CONTEXT, "--threads", 1)
    with serving(root, *arguments) as served:
        assert until(lambda: served.get("/readyz")[0] == 200, 120)
        ready_s = time.monotonic() - began
        return measured(files, count, seconds, served.process.pid, served.port, ready_s)


def with_vllm(files: Files, root: Path, count: int, seconds: float) -> dict[str, Any]:
    """The figures of vLLM, by the folder that decant writes for it."""
    named = tuple(NamedAdapter(f"a{n}", files.adapters[n % 2]) for n in range(count))
    folder = export_for_vllm(VllmRequest(named, root / f"vllm-{count}", str(files.base))).path
    began = time.monotonic()
    threads = {"VLLM_CPU_OMP_THREADS_BIND": "auto"}  # its default
    with vllm_serving(folder, root / f"vllm-{count}.log", env=threads) as server:
        ready_s = time.monotonic() - began
        return measured(files, count, seconds, server.process.pid, server.port, ready_s)


def copied(source: Path, place: Path) -> Path:
    place.parent.mkdir(exist_ok=True)
    if not place.exists():
        shutil.copyfile(source, place)
    return place


@contextmanager
def prepared() -> Iterator[tuple[Files, Path]]:
    """The models, and a folder for what is made of them."""
    toolchain = find_toolchain()
    demo = make_demo_models(cache_folder() / "demo")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        train_liar(root / "liar", demo.base)
        adapters = (demo.adapter, root / "liar")
        ggufs = (root / "pirate.gguf", root / "liar.gguf")
        for adapter, gguf in zip(adapters, ggufs, strict=True):
            export_lora(LoraRequest(adapter, demo.base, gguf), toolchain)
        export(ExportRequest((), demo.base, ("F32",), (root / "base.gguf",)), toolchain)
        oracle = Oracle(demo.base)
        pirate, liar = (
            dict(zip(PROMPTS, oracle.says(adapter, PROMPTS), strict=True)) for adapter in adapters
        )
        yield Files(demo.base, root / "base.gguf", adapters, ggufs, (pirate, liar)), root


def table(results: dict[str, Any]) -> str:
    """The figures as a table of Markdown, and the machine."""
    lines = [f"| adapters |{' |'.join(HEADS)} | vLLM / decant |", "|---" * 8 + "|"]
    for row in results["rows"]:
        ours, theirs = row["decant"], row["vllm"]
        shown = " | ".join(
            f"{one['requests_per_s']:.0f} | {one['p50_ms']:.0f} ms"
            f" | {one['memory_bytes'] / 1e6:,.0f} MB"
            for one in (ours, theirs)
        )
        lines.append(f"| {row['adapters']} | {shown} | {row['ratio']:.2f} |")
    first, last = results["rows"][0], results["rows"][-1]
    names = ("decant", "vllm")
    kept = [last[name]["requests_per_s"] / first[name]["requests_per_s"] for name in names]
    ready = [max(row[name]["ready_s"] for row in results["rows"]) for name in names]
    found = [row[name] for row in results["rows"] for name in names]
    answers, wrong = (sum(one[key] for one in found) for key in ("answers", "wrong"))
    return "\n".join(lines) + (
        f"\n\nFrom {first['adapters']} to {last['adapters']} adapters vLLM keeps {kept[1]:.2f} of"
        f" its speed, decant {kept[0]:.2f}. {wrong or 'None'} of {answers:,} answers differed from"
        f" those of transformers and peft. decant was ready after {ready[0]:.0f} s, vLLM after"
        f" {ready[1]:.0f} s. vLLM's memory includes {KV_GIB} GiB for keys and values. Machine:"
        f" {results['machine']}; vLLM {results['vllm']} for CPUs with {results['library']}.\n"
    )


def write(results: dict[str, Any]) -> None:
    """Write the figures, and the table in the document."""
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    write_part(DOCUMENT, MARKS, f"\n{table(results)}\n")


def main() -> None:
    """Measure, print the figures, and write them where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--seconds", type=float, default=10, help="of load, for each count")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    servers: dict[str, Callable[[Files, Path, int, float], dict[str, Any]]]
    servers = {"decant": with_decant, "vllm": with_vllm}
    rows = []
    with prepared() as (files, root):
        for count in options.counts:
            found = {n: run(files, root, count, options.seconds) for n, run in servers.items()}
            ratio = found["vllm"]["requests_per_s"] / found["decant"]["requests_per_s"]
            rows.append({"adapters": count, **found, "ratio": round(ratio, 3)})
            print(json.dumps(rows[-1]), file=sys.stderr)
    facts = host_facts()
    has_avx512 = "avx512f" in facts.features.split()
    results = {
        "machine": f"{facts.model}, {os.cpu_count()} cores, {platform.system()}",
        "vllm": VERSION, "library": "AVX-512" if has_avx512 else "AVX2",
        "clients": CLIENTS, "tokens": TOKENS, "seconds": options.seconds, "rows": rows,
    }  # fmt: skip
    print(json.dumps(results, indent=2))
    if options.write:
        write(results)
    sys.exit(any(row[name]["wrong"] for row in rows for name in servers))


if __name__ == "__main__":
    main()
