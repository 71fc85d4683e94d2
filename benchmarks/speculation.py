"""Speculative decoding: where it helps, where it does not, and whether the answers stay the same.

    python benchmarks/speculation.py [--only equal|times] [--rounds N] [--layers N] [--write]

The model is the demo's fine-tune, whose answers mean something, with layers added that change
nothing: it takes as long for a token as a model of its size. speculation_texts.py has the kinds of
answers. One client asks, and many at once. Both sides, with guesses and without, take turns.

An answer counts as the same if it parts where two tokens are nearly as likely: there another batch
size alone may change the choice. The largest such difference of logits is shown. The same holds
with adapters, streams, stop strings, schemas and logprobs, which speculation_equal.py has.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from benchmarks.marked_part import write_part  # noqa: E402
from benchmarks.speculation_equal import differences, kinds_for, make_models  # noqa: E402
from benchmarks.speculation_texts import TEXTS, Body  # noqa: E402
from exporter.core.machine import physical_cores  # noqa: E402
from exporter.demo import make_demo_models  # noqa: E402
from exporter.export import export  # noqa: E402
from exporter.formats.export_request import ExportRequest  # noqa: E402
from exporter.llamacpp.toolchain import cache_folder, find_toolchain, host_facts  # noqa: E402
from runtime.engine.llama_server import Server, ServerSpec  # noqa: E402
from runtime.engine.openai_client import ask_json  # noqa: E402
from runtime.engine.speculation import OFF, Speculation, speculation_of  # noqa: E402
from tests.support.near_ties import CLOSE, gap, written  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "speculation.json"
PAGE = CHECKOUT / "docs" / "serve.md"
MARKS = (
    "<!-- guesses: written by benchmarks/speculation.py --write -->\n",
    "<!-- end of guesses -->\n",
)
INNER = 8192  # values; the width of the added layers
EQUAL = 200  # prompts whose answers are compared
COMPARED = ("fresh", "repeated")  # the model's own answers
ASKED = 12  # prompts of one measurement
STREAMS = (1, 4, 16)
SLOWER_MAX = 1.03
CONTEXT = 1024  # tokens of one slot
PER_STREAM = 3  # answers of each client, where many ask


def slow_model(folder: Path, layers: int) -> Path:
    """The demo's fine-tune as a GGUF, with `layers` layers, of which most change nothing."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    demo = make_demo_models(cache_folder() / "demo")
    base = AutoModelForCausalLM.from_pretrained(demo.base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, demo.adapter).merge_and_unload()
    config = merged.config
    config.num_hidden_layers, config.intermediate_size = layers, INNER
    torch.manual_seed(1)
    large = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    found = large.state_dict()
    for name, value in found.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            value.zero_()
    for name, value in merged.state_dict().items():
        rows = found[name][: value.shape[0]]
        (rows[:, : value.shape[1]] if value.dim() > 1 else rows).copy_(value)
    place = folder / "slow"
    large.to(torch.bfloat16).save_pretrained(place)
    AutoTokenizer.from_pretrained(demo.base).save_pretrained(place)
    output = folder / "slow-Q4_K_M.gguf"
    export(ExportRequest((), place, ("Q4_K_M",), (output,)), find_toolchain())
    return output


@contextmanager
def running(model: Path, speculation: Speculation, slots: int) -> Iterator[Server]:
    flags = speculation.flags()
    spec = ServerSpec(model, CONTEXT, physical_cores(), slots, extra=flags)
    with Server(spec, find_toolchain()) as server:
        yield server


def answer(server: Server, body: Body) -> dict[str, Any]:
    return ask_json(server, "/completion", {"temperature": 0, "cache_prompt": False, **body})


def seconds(server: Server, asked: Sequence[Body], streams: int) -> float:
    """The time of the answers, without the prompts' if one client asks."""
    if streams == 1:
        found = (answer(server, body)["timings"]["predicted_ms"] for body in asked)
        return sum(map(float, found)) / 1000
    began = monotonic()
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(lambda body: answer(server, body), asked))
    return monotonic() - began


def speeds(model: Path, kinds: dict[str, Speculation], rounds: int) -> dict[str, Any]:
    """The time with each kind, as a part of the time without; medians of rounds."""
    found: dict[str, Any] = {}
    for streams in STREAMS:
        with ExitStack() as stack:
            off = stack.enter_context(running(model, OFF, streams))
            servers = {
                name: stack.enter_context(running(model, kind, streams))
                for name, kind in kinds.items()
            }
            for text, made in TEXTS.items():
                bodies = itertools.cycle(made(off))
                count = ASKED if streams == 1 else PER_STREAM * streams
                turns = Turns(list(itertools.islice(bodies, count)), streams, rounds)
                found.setdefault(text, {})[str(streams)] = turns.ratios(off, servers)
                print(text, streams, found[text][str(streams)], file=sys.stderr)
    return found


@dataclass(frozen=True, slots=True)
class Turns:
    """What both sides are asked, in turns."""

    asked: Sequence[Body]
    streams: int
    rounds: int

    def ratios(self, off: Server, servers: dict[str, Server]) -> dict[str, float]:
        """The time of each server as a part of the time of `off`; medians of the rounds."""
        found: dict[str, list[float]] = {name: [] for name in servers}
        for server in (off, *servers.values()):
            answer(server, self.asked[0])
        for _ in range(self.rounds):
            without = self.seconds(off)
            for name, server in servers.items():
                found[name].append(self.seconds(server) / without)
        return {name: round(statistics.median(some), 3) for name, some in found.items()}

    def seconds(self, server: Server) -> float:
        return seconds(server, self.asked, self.streams)


def same_answers(model: Path, kinds: dict[str, Speculation]) -> dict[str, Any]:
    """How many of EQUAL answers are the same as without guesses, and the largest gap."""
    found: dict[str, Any] = {}
    with running(model, OFF, 1) as off:
        asked = [body for text in COMPARED for body in TEXTS[text](off)][:EQUAL]
        right = [tokens_after(off, body) for body in asked]
        for name, kind in kinds.items():
            with running(model, kind, 1) as server:
                other = [tokens_after(server, body) for body in asked]
            gaps = [
                gap(off, body["prompt"], *pair, settings_of(body))
                for body, *pair in zip(asked, right, other, strict=True)
            ]
            found[name] = {
                "to_the_letter": sum(one == 0 for one in gaps),
                "same": sum(one < CLOSE for one in gaps),
                "largest_gap": round(max(gaps), 3),
            }
    return found


def equal(model: Path, kinds: dict[str, Speculation], folder: Path) -> dict[str, Any]:
    """The comparison of answers: of the slow model, and of adapters with each option."""
    models = make_models(folder)
    options = differences(models, kinds_for(models), EQUAL)
    return {
        "compared": EQUAL,
        "equal": same_answers(model, kinds),
        "with_options": {kind: one.numbers() for kind, one in options.items()},
    }


def tokens_after(server: Server, body: Body) -> list[int]:
    """The tokens of an answer."""
    return written(server, body["prompt"], settings_of(body))


def table(found: dict[str, Any]) -> str:
    """The times with guesses from the text so far, as Markdown."""
    times = found["time_of_without"]
    worst = max(ratios["draft"] for of_text in times.values() for ratios in of_text.values())
    clients = [f"{n} client{'s' * (n > 1)}" for n in STREAMS]
    size = f"{found['model_nbytes'] / 1e6:.0f} MB"
    rows = [
        [text, *(f"{ratios[str(n)]['ngram']:.2f}" for n in STREAMS)]
        for text, ratios in times.items()
    ]
    about = "The time with `--spec ngram`, as a part of the time without, for a model of"
    draft = "A draft model whose guesses are nearly all wrong costs more: up to"
    lines = [
        f"{about} {size} on {found['machine']}:\n",
        f"| {' | '.join(['the answer is', *clients])} |",
        f"|---|{'---|' * len(clients)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        f"\n{draft} {worst:.1f} × there.",
    ]
    return "\n".join(lines) + "\n"


def settings_of(body: Body) -> Body:
    """A request without its prompt."""
    return {name: value for name, value in body.items() if name != "prompt"}


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The parts of the results that are asked for."""
    model, small = slow_model(folder, options.layers), folder / "small-Q4_K_M.gguf"
    demo = make_demo_models(cache_folder() / "demo")
    export(
        ExportRequest(((demo.adapter, 1.0),), demo.base, ("Q4_K_M",), (small,)), find_toolchain()
    )
    kinds = {"ngram": Speculation("ngram"), "draft": speculation_of(str(small), folder)}
    found: dict[str, Any] = {}
    if options.only != "times":
        found |= equal(model, kinds, folder)
    if options.only != "equal":
        found |= {
            "machine": f"{host_facts().model}, {os.cpu_count()} cores, {platform.system()}",
            "model_nbytes": model.stat().st_size,
            "time_of_without": speeds(model, kinds, options.rounds),
        }
    return found


def missed(found: dict[str, Any]) -> list[str]:
    """What is slower with guesses than it may be, and whose answers differ."""
    fresh = found.get("time_of_without", {}).get("fresh", {})
    slower = [n for n, ratios in fresh.items() if ratios["ngram"] > SLOWER_MAX]
    same = [
        (f"{part}: {kind}: {name}: {one[name]}", one[name])
        for part in ("equal", "with_options")
        for kind, one in found.get(part, {}).items()
        for name in ("same", "same_in_a_chat")
        if name in one
    ]
    differing = [what for what, count in same if count < EQUAL]
    return [*(f"slower with {n} clients" for n in slower), *differing]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=("equal", "times"), help="the other part stays as it is")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--write", action="store_true", help=f"{RESULTS.name} and {PAGE.name}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measured(options, Path(name))
    print(json.dumps(found, indent=2))
    if options.write:
        whole = json.loads(RESULTS.read_text()) | found
        RESULTS.write_text(json.dumps(whole, indent=2) + "\n")
        write_part(PAGE, MARKS, table(whole))
    wrong = missed(found)
    for line in wrong:
        print(f"missed: {line}", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
