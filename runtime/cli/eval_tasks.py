"""`decant eval --tasks`: lm-evaluation-harness, run on `decant serve` for each model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from exporter.cli.common_options import store
from exporter.cli.terminal_renderer import print_json, reporting
from exporter.core.atomic_file import atomic_write, make_folder
from exporter.core.errors import EngineError, InputError, UnsupportedError
from exporter.core.events import Report, Step
from exporter.core.paths import evaluations_folder
from exporter.core.terminal_text import without_controls
from exporter.core.version import version
from exporter.llamacpp.header_tokens import adds_bos
from exporter.model_store import plain_name
from runtime.cli.eval_options import EvalOptions
from runtime.cli.from_folder import failure, model_of
from runtime.engine.adapters import bring_adapters
from runtime.engine.opened_model import Model, open_model
from runtime.engine.purpose import purpose_of
from runtime.process.kept_processes import start_kept

HINT = "pip install 'lm_eval[api]'"
TASKS_FILE = "tasks.json"
CONTEXT_MAX = 4096
"""Tokens of context without --ctx: few-shot prompts of the usual benchmarks fit."""
PROMPTS = 16  # prompts of a request; decant scores their common beginning once
KEPT = ("results", "groups", "versions", "n-shot")
"""The parts of the harness's results that are repeated in ours."""
STOP_S = 5  # seconds for a child to end after SIGTERM
KEY = "DECANT_API_KEY"
ONLY_DATA = (
    "against", "url", "split", "layout", "columns", "system", "skip_bad", "metrics", "by",
    "max_tokens", "force", "judge", "html", "markdown",
)  # fmt: skip
"""Options that mean something for --data alone."""


def run_tasks(options: EvalOptions) -> int:
    """Run the harness on each model, print its tables, write results; return the exit code.

    Raises UsageError for options of --data, InputError without the harness or a tokenizer, and
    EngineError if the server or the harness fails.
    """
    for name in ONLY_DATA:
        if getattr(options, name):
            option = {"columns": "column", "metrics": "metric"}.get(name, name).replace("_", "-")
            raise click.UsageError(f"--{option} is for --data, not --tasks")
    if find_spec("lm_eval") is None:
        raise InputError("--tasks needs lm-evaluation-harness, which is not installed", hint=HINT)
    found: dict[str, Any] = {}
    result = {
        "tasks": options.tasks,
        "limit": options.limit,
        "lm_eval": version("lm_eval"),
        "models": found,
    }
    with reporting(quiet=options.quiet) as report:
        models = opened_models(options, report)
        path = new_folder(models[0].name) / TASKS_FILE
        for model in models:
            tokenizer = tokenizer_of(model, options.base)
            with served(model, options, path.parent, report) as (url, names):
                for name in names:
                    shown = model.name + name.removeprefix(names[0])  # a server's name has no quant
                    report(Step(f"running {options.tasks} on {shown}"))
                    settings = model_settings(model, name, url, tokenizer, options)
                    place = path.with_name(plain_name(shown))
                    found[shown] = harness(settings, options, place)
                    write_results(path, result)
    if options.as_json:
        print_json({**result, "report": str(path)})
    else:
        click.echo(f"report: {path}")
    return 0


def opened_models(options: EvalOptions, report: Report) -> list[Model]:
    """The models by their headers, with their adapters.

    Raises InputError for adapters beside several models, and the errors of finding, pulling and
    exporting.
    """
    if options.adapters and len(options.models) != 1:
        raise InputError(
            f"--adapter goes with one model, and {len(options.models)} are named",
            hint="name the base, and an --adapter for each fine-tune",
        )
    models = []
    for text in options.models:
        found = model_of(text, options.base, store(), report=report)
        beside = (found.adapter,) if found.adapter else ()
        brought = bring_adapters(options.adapters, options.base, store(), report=report)
        model = open_model(found.path, (*beside, *brought))
        refuse_other_purpose(model)
        models.append(model)
    names = [model.name for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two models are called {twice[0]!r}", hint="rename one of their files")
    return models


def refuse_other_purpose(model: Model) -> None:
    """Raise UnsupportedError for a model that does not continue a text."""
    if model.is_encoder_decoder or purpose_of(model.header) != "answers":
        raise UnsupportedError(
            f"`{model.header.path}` does not continue a text, as the harness asks of a model",
            hint="name a model that generates text, and is no encoder-decoder",
        )


def tokenizer_of(model: Model, base: str | None) -> str:
    """The folder or the repo of the base's tokenizer, with which the harness tokenizes.

    Raises InputError where neither --base nor the GGUF names one.
    """
    header = model.header
    named = base or header.text("decant.base.repo") or header.text("decant.base") or ""
    is_repo = named.count("/") == 1 and not named.startswith((".", "/", "~"))
    if Path(named or "\0").is_dir() or is_repo:
        return str(Path(named).resolve()) if Path(named).is_dir() else named
    known = f"names its base as {named!r} only" if named else "does not name its base"
    raise InputError(
        f"`{named}` is no folder with a tokenizer" if base else f"`{header.path}` {known}",
        hint="--base FOLDER, or ORG/NAME of the hub: the harness needs the base's tokenizer",
    )


def context_of(model: Model, options: EvalOptions) -> int:
    """The context in tokens: that of --ctx, else the model's, up to CONTEXT_MAX."""
    if options.context is not None:
        return options.context
    trained = model.header.number(f"{model.header.architecture}.context_length")
    return min(trained or CONTEXT_MAX, CONTEXT_MAX)


def model_settings(
    model: Model, name: str, url: str, tokenizer: str, options: EvalOptions
) -> dict[str, Any]:
    """The harness's --model_args."""
    return {
        "model": name,
        "base_url": f"{url}/v1/completions",
        "tokenizer": tokenizer,
        "num_concurrent": options.parallel,
        "max_length": context_of(model, options),
        "add_bos_token": adds_bos(model.header),
    }


@contextmanager
def served(
    model: Model, options: EvalOptions, folder: Path, report: Report
) -> Iterator[tuple[str, list[str]]]:
    """`decant serve` with one model: its address, and the names of base and adapters.

    The server ends with the block, or with this process. Raises EngineError and the error that
    ended the server.
    """
    path = model.header.path
    report(Step(f"serving {model.name}"))
    argv = [
        sys.executable, "-m", "exporter", "serve", str(path), "--host", "127.0.0.1", "--port", "0",
        "--json", "--parallel", str(options.parallel), "--ctx", str(context_of(model, options)),
        "--ttl", "0", "--grace", "1s",
        *(["--threads", str(options.threads)] if options.threads else []),
        *(
            part
            for one in model.adapters
            for part in ("--adapter", f"{one.name}={one.path}:{one.scale:g}")
        ),
    ]  # fmt: skip
    log = folder / f"{plain_name(model.name)}.server.log"
    env = {name: value for name, value in os.environ.items() if name != KEY}
    with log.open("wb") as errors:
        process = start_kept(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=env,
            start_new_session=True,  # Ctrl-C is for this process, which ends it
        )  # fmt: skip
    try:
        found = announced(process)
        if found is None:
            code = process.wait()
            output = log.read_text(errors="replace")
            raise failure(code, output, [str(path)], "serve")
        yield found
    finally:
        ended(process)


def announced(process: subprocess.Popen[bytes]) -> tuple[str, list[str]] | None:
    """The address and the names that `decant serve --json` prints; None if it ended before."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line.decode(errors="replace")
        with suppress(ValueError, KeyError, TypeError):
            printed = json.loads(text)
            return str(printed["url"]), [str(name) for name in printed["models"]]
    return None


def ended(process: subprocess.Popen[bytes]) -> None:
    """End a child, by force where it does not end."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def harness(settings: dict[str, Any], options: EvalOptions, place: Path) -> dict[str, Any]:
    """Run lm-evaluation-harness on one model; its tables go to stdout, for --json to stderr.

    place: the folder for its files. Returns the results that it wrote. Raises EngineError if it
    fails.
    """
    argv = [
        sys.executable, "-m", "lm_eval", "--model", "local-completions",
        "--model_args", json.dumps(settings), "--tasks", str(options.tasks),
        "--batch_size", str(PROMPTS), "--output_path", str(place),
        *(["--limit", str(options.limit)] if options.limit else []),
        *(["--seed", str(options.seed)] if options.seed else []),
    ]  # fmt: skip
    log = place.with_name(f"{place.name}.harness.log")
    is_seen = sys.stderr.isatty() and not options.quiet
    with log.open("wb") as errors:
        process = start_kept(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=None if is_seen else errors,
            start_new_session=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            text = line.decode(errors="replace").rstrip("\n")
            click.echo(without_controls(text), err=options.as_json)
        code = process.wait()
    finally:
        ended(process)
    results = max(place.rglob("results_*.json"), key=lambda one: one.stat().st_mtime, default=None)
    if code or results is None:
        hint = "its messages are above" if is_seen else f"its messages are in `{log}`"
        raise EngineError(why_it_failed(code, log), hint=hint)
    try:
        written = json.loads(results.read_text("utf-8"))
    except ValueError as error:
        raise EngineError(f"`{results}` is not JSON: {error}") from error
    return {
        "model_args": settings,
        "file": str(results),
        **{key: written[key] for key in KEPT if key in written},
    }


def write_results(path: Path, result: dict[str, Any]) -> None:
    """Write the results so far, complete or not at all. Raises OutputError and SpaceError."""
    with atomic_write(path, force=True) as file:
        file.write(json.dumps(result, indent=2, ensure_ascii=False).encode() + b"\n")


def why_it_failed(code: int, log: Path) -> str:
    """A sentence with the last line of the harness's log, where there is one."""
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    ended_with = f"lm_eval ended with {code}" if code else "lm_eval wrote no results"
    return f"{ended_with}: {lines[-1].strip()}" if lines else ended_with


def new_folder(name: str) -> Path:
    """A folder for the results, beside those of other evaluations. Raises OutputError."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = evaluations_folder(os.environ) / f"{stamp}-{plain_name(name)}-tasks"
    number = 2
    while folder.exists():
        folder = folder.with_name(f"{stamp}-{plain_name(name)}-tasks-{number}")
        number += 1
    make_folder(folder)
    return folder
