"""`decant serve` with 1 to 1,000 adapters over one tiny base.

    python benchmarks/adapters.py [--counts N …] [--seconds S] [--write]

Each adapter lets the tiny model write two letters that no other adapter writes together, so that
every answer shows which adapter gave it. Clients ask for adapters by chance. The adapters are given
at the start; with the last count they are also loaded one by one while the server runs.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from benchmarks.marked_part import write_part  # noqa: E402
from exporter.llamacpp.toolchain import host_facts  # noqa: E402
from tests.runtime.gateway.conftest import Served, serving, until  # noqa: E402
from tests.support.raw import write_tiny_gguf  # noqa: E402
from tests.support.tiny_lora import is_by, write_tiny_lora  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "adapters.json"
DOCUMENT = CHECKOUT / "docs" / "serve.md"
MARKS = (
    "<!-- adapters: written by benchmarks/adapters.py --write -->\n",
    "<!-- end of adapters -->\n",
)
COUNTS = (1, 8, 32, 100, 300, 1000)
CLIENTS, TOKENS, SLOTS, CONTEXT = 16, 8, 4, 128
JSON = {"Content-Type": "application/json"}
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@dataclass
class Load:
    """Clients that ask for adapters by chance, each on one connection."""

    port: int
    count: int
    seconds: float
    took: list[float] = field(default_factory=list)
    wrong: list[tuple[int, str]] = field(default_factory=list)

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
            number = dice.randrange(self.count)
            began = time.monotonic()
            status, text = answer(connection, number)
            self.took.append(time.monotonic() - began)
            if status != 200 or not is_by(text, number):
                self.wrong.append((number, text))
        connection.close()


def answer(connection: http.client.HTTPConnection, number: int) -> tuple[int, str]:
    """The status and the text of an adapter's answer."""
    body = {
        "model": f"tiny:a{number}", "prompt": "Hi", "max_tokens": TOKENS, "temperature": 0,
    }  # fmt: skip
    connection.request("POST", "/v1/completions", json.dumps(body), JSON)
    with connection.getresponse() as response:
        text = response.read().decode()
    return response.status, json.loads(text)["choices"][0][
        "text"
    ] if response.status == 200 else text


def rss(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


@contextmanager
def serving_tiny(folder: Path, count: int) -> Iterator[tuple[Served, float]]:
    """A server with so many adapters, and the seconds from its start until it was ready."""
    named = {f"a{n}": str(folder / "adapters" / f"{n}.gguf") for n in range(count)}
    pairs = ", ".join(f"{name} = {json.dumps(path)}" for name, path in named.items())
    config = folder / f"{count}.toml"
    config.write_text(f'[[model]]\npath = "{folder / "tiny.gguf"}"\nadapters = {{ {pairs} }}\n')
    # one thread: several that wait for each other's turn on busy cores would be measured instead
    arguments = ("--config", config, "--parallel", SLOTS, "--ctx", CONTEXT, "--threads", 1)
    began = time.monotonic()
    more = ("--allow-adapter-path", folder / "adapters", "--limit", f"adapters={2 * max(COUNTS)}")
    with serving(folder, *arguments, *more) as served:
        assert until(lambda: served.get("/readyz")[0] == 200, 120)
        yield served, time.monotonic() - began


def with_adapters(folder: Path, count: int, seconds: float) -> dict[str, Any]:
    """The figures with so many adapters, given at the start."""
    with serving_tiny(folder, count) as (served, ready_s):
        (engine,) = served.children()
        load = Load(served.port, count, seconds)
        warm = Load(served.port, count, 0.5)
        warm.run()
        load.run()
        listed = timed(lambda: served.get("/v1/models"))
        return {
            "adapters": count,
            "ready_s": round(ready_s, 3),
            "engine_load_s": round(served.metric("decant_model_load_seconds"), 3),
            "p50_ms": round(1000 * statistics.median(load.took), 1),
            "p99_ms": round(1000 * quantile(load.took, 0.99), 1),
            "requests_per_s": round(len(load.took) / seconds, 1),
            "answers": len(load.took),
            "wrong": len(load.wrong) + len(warm.wrong),
            "engine_rss_bytes": rss(engine),
            "gateway_rss_bytes": rss(served.process.pid),
            "list_ms": round(1000 * listed, 1),
        }


def at_run_time(folder: Path, count: int) -> dict[str, Any]:
    """The time to add so many adapters one by one, and until the last of them answers."""
    with serving_tiny(folder, 0) as (served, _):
        began = time.monotonic()
        for number in range(count):
            body = {"lora_name": f"a{number}", "lora_path": f"{number}.gguf"}
            with served.send("POST", LOAD, body) as response:
                assert response.status == 200, response.read()
        added_s = time.monotonic() - began
        connection = served.connect()
        began = time.monotonic()
        status, text = answer(connection, count - 1)
        first_s = time.monotonic() - began
        connection.close()
        assert status == 200, text
        assert is_by(text, count - 1)
        began = time.monotonic()
        with served.send("POST", UNLOAD, {"lora_name": f"a{count - 1}"}) as response:
            assert response.status == 200
        return {
            "adapters": count,
            "add_one_ms": round(1000 * added_s / count, 2),
            "first_answer_s": round(first_s, 3),
            "remove_one_ms": round(1000 * (time.monotonic() - began), 2),
        }


def timed(work: Any) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def table(results: dict[str, Any]) -> str:
    """The figures as a table of Markdown, and the machine."""
    lines = [
        "| adapters | ready | median answer | answers/s | wrong | engine's memory | decant's |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['adapters']:,} | {row['ready_s']:.1f} s | {row['p50_ms']:.0f} ms |"
        f" {row['requests_per_s']:.0f} | {row['wrong']} of {row['answers']:,} |"
        f" {row['engine_rss_bytes'] / 1e6:.0f} MB | {row['gateway_rss_bytes'] / 1e6:.0f} MB |"
        for row in results["at_start"]
    ]
    added = results["at_run_time"]
    return "\n".join(lines) + (
        f"\n\nAt run time: {added['adapters']:,} adapters were added one by one in"
        f" {added['add_one_ms']:.1f} ms each; the first answer of the last one came after"
        f" {added['first_answer_s']:.2f} s; removing it took {added['remove_one_ms']:.1f} ms."
        f" Machine: {results['machine']}.\n"
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
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "adapters").mkdir()
        write_tiny_gguf(folder / "tiny.gguf")
        for number in range(max(options.counts)):
            write_tiny_lora(folder / "adapters" / f"{number}.gguf", number)
        rows = [with_adapters(folder, count, options.seconds) for count in options.counts]
        results = {
            "machine": f"{host_facts().model}, {os.cpu_count()} cores, {platform.system()}",
            "clients": CLIENTS, "slots": SLOTS, "tokens": TOKENS, "seconds": options.seconds,
            "at_start": rows,
            "at_run_time": at_run_time(folder, max(options.counts)),
        }  # fmt: skip
    print(json.dumps(results, indent=2))
    if options.write:
        write(results)
    sys.exit(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    main()
