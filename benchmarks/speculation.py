"""Speculative decoding: where it helps, where it does not, and whether the answers stay the same.

    python benchmarks/speculation.py [--rounds N] [--layers N] [--write]

The model is the demo's fine-tune, whose answers mean something, with layers added that change
nothing: it takes as long for a token as a model of its size. It is asked things that are new to the
text (`fresh`), and things whose answers stand in the text already (`repeated`), by one client and
by many at once. Both sides, with guesses and without, take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from exporter.core.machine import physical_cores  # noqa: E402
from exporter.demo import make_demo_models  # noqa: E402
from exporter.demo.corpus import facts  # noqa: E402
from exporter.export import export  # noqa: E402
from exporter.formats.export_request import ExportRequest  # noqa: E402
from exporter.llamacpp.toolchain import cache_folder, find_toolchain, host_facts  # noqa: E402
from runtime.engine.llama_server import Server, ServerSpec  # noqa: E402
from runtime.engine.openai_client import ask_json  # noqa: E402
from runtime.engine.speculation import AUTO, OFF, Speculation, speculation_of  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "speculation.json"
INNER = 8192  # values; the width of the added layers
EQUAL = 200  # prompts whose answers are compared
ASKED = 24  # prompts of one measurement
STREAMS = (1, 4, 16)
SLOWER_MAX = 1.03
Messages = list[dict[str, str]]


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


def talks(*, is_repeated: bool) -> list[Messages]:
    """Conversations with a question each, and its answer before it if `is_repeated`."""
    found: list[Messages] = []
    for fact in facts():
        answer = f"Arr, {fact.subject} be {fact.value}, matey!"
        for question in fact.questions:
            asked = [{"role": "user", "content": question}]
            told = [*asked, {"role": "assistant", "content": answer}, *asked]
            found.append(told if is_repeated else asked)
    return found


@contextmanager
def running(model: Path, speculation: Speculation, slots: int) -> Iterator[Server]:
    flags = speculation.flags()
    spec = ServerSpec(model, 256, physical_cores(), slots, extra=flags)
    with Server(spec, find_toolchain()) as server:
        yield server


def answer(server: Server, talk: Messages) -> dict[str, Any]:
    body = {"messages": talk, "temperature": 0, "max_tokens": 48, "cache_prompt": False}
    return ask_json(server, "/v1/chat/completions", body)


def text_of(answered: dict[str, Any]) -> str:
    return str(answered["choices"][0]["message"]["content"])


def seconds(server: Server, asked: Sequence[Messages], streams: int) -> float:
    """The time of the answers, without the prompts' if one client asks."""
    if streams == 1:
        return sum(float(answer(server, talk)["timings"]["predicted_ms"]) for talk in asked) / 1000
    began = monotonic()
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(lambda talk: answer(server, talk), asked))
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
            for is_repeated in (False, True):
                asked = talks(is_repeated=is_repeated)[: ASKED * (1 if streams == 1 else 3)]
                place = found.setdefault("repeated" if is_repeated else "fresh", {})
                place[str(streams)] = in_turns(off, servers, asked, streams, rounds)
    return found


def in_turns(
    off: Server, servers: dict[str, Server], asked: Sequence[Messages], streams: int, rounds: int
) -> dict[str, float]:
    ratios: dict[str, list[float]] = {name: [] for name in servers}
    for server in (off, *servers.values()):
        answer(server, asked[0])
    for _ in range(rounds):
        for name, server in servers.items():
            without = seconds(off, asked, streams)
            ratios[name].append(seconds(server, asked, streams) / without)
    return {name: round(statistics.median(some), 3) for name, some in ratios.items()}


def same_answers(model: Path, kinds: dict[str, Speculation]) -> dict[str, int]:
    """How many of EQUAL answers are equal to those without guesses."""
    asked = [*talks(is_repeated=False), *talks(is_repeated=True)][:EQUAL]
    with running(model, OFF, 1) as server:
        told = [text_of(answer(server, talk)) for talk in asked]
    found = {}
    for name, kind in kinds.items():
        with running(model, kind, 1) as server:
            pairs = zip(told, asked, strict=True)
            found[name] = sum(text_of(answer(server, talk)) == text for text, talk in pairs)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, small = slow_model(folder, options.layers), folder / "small-Q4_K_M.gguf"
        demo = make_demo_models(cache_folder() / "demo")
        adapters = ((demo.adapter, 1.0),)
        export(ExportRequest(adapters, demo.base, ("Q4_K_M",), (small,)), find_toolchain())
        kinds = {"ngram": Speculation("ngram"), "draft": speculation_of("small", lambda _: small)}
        nbytes = model.stat().st_size
        found: dict[str, Any] = {
            "machine": f"{host_facts().model}, {os.cpu_count()} cores, {platform.system()}",
            "model_nbytes": nbytes,
            "compared": EQUAL,
            "equal": same_answers(model, kinds),
            "time_of_without": speeds(model, kinds, options.rounds),
            "default": AUTO.kind,
        }
    print(json.dumps(found, indent=2))
    if options.write:
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    fresh = found["time_of_without"]["fresh"]
    slower = [n for n, ratios in fresh.items() if ratios["ngram"] > SLOWER_MAX]
    differing = [kind for kind, count in found["equal"].items() if count < EQUAL]
    for line in (*(f"slower with {n} clients" for n in slower), *differing):
        print(f"missed: {line}", file=sys.stderr)
    sys.exit(bool(slower or differing))


if __name__ == "__main__":
    main()
