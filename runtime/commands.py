"""`decant chat`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import click

from exporter.cli.options import json_option, offline_option, quiet_option, store
from exporter.cli.render import print_json, reporting
from exporter.core.gguf import GGUFFile, read_gguf
from exporter.core.machine import cores
from exporter.store import find_model, refuse_adapter
from exporter.toolchain import find_toolchain
from runtime.child import Server, ServerSpec
from runtime.client import Delta, Stopped, ask, without_controls

CONTEXT = 8192  # tokens; enough for a talk, and its cache fits a laptop


@click.command(epilog='Example: decant chat my-lora -p "What is the capital of France?"')
@click.argument("model")
@click.option("-p", "--prompt", help="What to ask; without it, standard input is read.")
@click.option("--system", help="System message.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), help="Stop after this many tokens.")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.8,
    show_default=True,
    help="0 always takes the likeliest token.",
)
@click.option("--seed", type=int, help="Same seed, same answer.")
@click.option(
    "--ctx",
    "context",
    type=click.IntRange(1),
    help=f"Context in tokens; default: the model's, up to {CONTEXT}.",
)
@click.option("--threads", type=click.IntRange(1, 256), help="Threads; default: all cores.")
@offline_option
@json_option
@quiet_option
def chat(
    model: str,
    prompt: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float,
    seed: int | None,
    context: int | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Ask MODEL, a name from `decant list` or a path to a GGUF, and print its answer."""
    with reporting(quiet=quiet) as report:
        path = find_model(model, store(), report=report)
    header = read_gguf(path)
    refuse_adapter(header)
    question = prompt if prompt is not None else read_stdin()
    settings = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    spec = ServerSpec(path, context or default_context(header), threads or cores())
    given = {name: value for name, value in settings.items() if value is not None}
    with ExitStack() as stack:
        with reporting(quiet=quiet or not sys.stderr.isatty()) as report:
            server = stack.enter_context(Server(spec, find_toolchain(), report=report))
        answer_once(server, messages, given, path, as_json)


def answer_once(
    server: Server,
    messages: list[dict[str, str]],
    settings: Mapping[str, object],
    path: Path,
    as_json: bool,
) -> None:
    """Stream the answer to stdout, or print it whole as JSON."""
    text: list[str] = []
    stopped: Stopped | None = None
    for piece in ask(server, messages, settings):
        match piece:
            case Delta():
                text.append(piece.text)
                if not as_json:
                    shown = without_controls(piece.text) if sys.stdout.isatty() else piece.text
                    click.echo(shown, nl=False)
            case Stopped():
                stopped = piece
    assert stopped is not None, "ask ends with Stopped or raises"
    if as_json:
        print_json(
            {
                "model": str(path),
                "answer": "".join(text),
                "finish_reason": stopped.reason,
                "prompt_tokens": stopped.prompt_tokens,
                "tokens": stopped.tokens,
                "tokens_per_second": round(stopped.tokens_per_second, 1),
            }
        )
    else:
        click.echo()


def read_stdin() -> str:
    if sys.stdin.isatty():
        raise click.UsageError('nothing to ask: pass -p "…", or the question on standard input')
    question = sys.stdin.read().strip()
    if not question:
        raise click.UsageError('nothing to ask: standard input is empty; pass -p "…"')
    return question


def default_context(header: GGUFFile) -> int:
    trained = header.number(f"{header.architecture}.context_length") or CONTEXT
    return min(trained, CONTEXT)
