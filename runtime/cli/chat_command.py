"""The command `decant chat`: one answer, or a conversation at a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from exporter.cli import completing
from exporter.cli.common_options import json_option, offline_option, quiet_option, store
from exporter.cli.terminal_renderer import print_json, print_table, reporting
from exporter.core.errors import InputError
from exporter.core.events import Report
from exporter.core.paths import chat_prompts_folder, data_folder
from exporter.core.terminal_text import without_controls
from runtime.chat.chat_options import Options
from runtime.chat.repl.attachments import is_image, read_image, read_text
from runtime.chat.repl.set_options import sent
from runtime.chat.session import Conversation, Turn
from runtime.chat.session_files import (
    Session,
    delete_session,
    find_session,
    list_sessions,
    resume,
    session_to_delete,
)
from runtime.cli.answer_options import NumberRange, answer_options, spec_option
from runtime.cli.from_folder import model_of
from runtime.engine.adapters import bring_adapters
from runtime.engine.local import RAW_TOKENS, Engine, LocalEngine, answerer, opening_selection
from runtime.engine.memory_fit import FitOptions
from runtime.engine.openai_client import Delta, Message, Stopped, Thought
from runtime.engine.opened_model import open_model
from runtime.engine.remote import parse_url, read_key
from runtime.engine.remote_engine import RemoteEngine
from runtime.engine.saved_prompts import forget_prompts
from runtime.engine.selection import AdapterSelection
from runtime.engine.speculation import speculation_of
from runtime.engine.template_choice import HELP, NO_TEMPLATE, read_template, with_template

NOTHING_TO_ASK = 'nothing to ask: {}; pass -p "…"'

NO_TEXT = "a file is a text in UTF-8, or a PNG, JPEG, GIF, BMP or WebP"


@click.command(epilog="Example: decant chat BASE.gguf --adapter pirate=./my-lora")
@click.argument("model", required=False, shell_complete=completing.models)
@click.option("-p", "--prompt", help="Ask this, print the answer and end.")
@click.option("--system", help="System message.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), help="Stop after this many tokens.")
@click.option(
    "--temperature",
    type=NumberRange(0, 1000),
    help="0 always takes the most likely token; default: 0.8.",
)
@click.option("--seed", type=int, help="Same seed, same answer.")
@click.option(
    "--ctx", "context", type=click.IntRange(1),
    help="Context in tokens; default: the model's, up to 8192, as memory allows.",
)  # fmt: skip
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    help="Threads; default: one per physical core, fewer for a small model.",
)
@click.option(
    "--adapter", "adapters", multiple=True, metavar="NAME=PATH[:SCALE]",
    help="A LoRA beside the model: a GGUF adapter, or a folder in PEFT's form. Repeatable.",
)  # fmt: skip
@click.option("--base", help="The base's folder or repo; default: the one a PEFT folder names.")
@click.option(
    "--mmproj", "projector", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The projector for images; one beside the model is found without this.",
)  # fmt: skip
@click.option("--chat-template", metavar="NAME|FILE", help=HELP)
@answer_options
@spec_option
@click.option("--raw", is_flag=True, help="Continue your text, without a chat template.")
@click.option("--url", help="Use a remote server that speaks OpenAI's API.")
@click.option(
    "--key-file", type=click.Path(path_type=Path), help="The file with that server's key."
)
@click.option("--model", "remote_model", metavar="NAME", help="The model of that server.")
@click.option("--markdown", is_flag=True, help="Render answers.")
@click.option("--stats", is_flag=True, help="Show counts and speeds after each answer.")
@click.option("--save/--no-save", default=True, help="Keep the conversation; the default.")
@click.option("--continue", "go_on", is_flag=True, help="Continue the last conversation.")
@click.option("--resume", metavar="ID", help="Continue this conversation.")
@click.option("--delete", metavar="ID", help="Delete the conversation with this whole id or name.")
@click.option("--list", "list_", is_flag=True, help="List the conversations.")
@click.option("--force", is_flag=True, help="Load the model even if it seems not to fit.")
@click.option("--verbose", is_flag=True, help="Show the settings chosen for this machine.")
@offline_option
@json_option
@quiet_option
def chat(**given: Any) -> int:  # the values of the options above
    """Talk to MODEL: a name from `decant list`, a path to a GGUF, or a repo of GGUFs or an adapter.

    MODEL may also be a folder that a trainer saved: an adapter is used beside its base, which is
    exported once if it is not among the exported models.

    On a terminal this begins a conversation; /help lists its commands. Otherwise, and with -p, it
    prints one answer.
    """
    options = Options(**given)
    if options.list_:
        show_sessions(as_json=options.as_json)
        return 0
    if options.delete:
        delete_session(path := session_to_delete(sessions_folder(), options.delete))
        forget_prompts(chat_prompts_folder(os.environ))
        click.echo(f"deleted {path.stem}", err=True)
        return 0
    check(options)
    if is_conversation(options):
        return converse(options)
    question = options.prompt if options.prompt is not None else read_stdin()
    with opened_engine(options) as engine:
        answer_once(engine, question, options)
    return 0


def check(options: Options) -> None:
    """Raise UsageError for options that contradict each other."""
    if options.url and (given := options.for_local_models):
        what = "is" if len(given) == 1 else "are"
        raise click.UsageError(f"{', '.join(given)} {what} for a local model, not for --url")
    if options.raw and (options.json_schema or options.thinking is not None):
        raise click.UsageError(
            "--json-schema and --think are for chats; --grammar-file is for --raw, too"
        )
    if options.json_schema and options.grammar:
        raise click.UsageError("--json-schema and --grammar-file both set the form: give one")
    if options.raw and options.chat_template:
        raise click.UsageError("--raw takes no template: leave --chat-template out")
    goes_on = options.go_on or options.resume
    if goes_on and not is_conversation(options):
        raise click.UsageError("--continue and --resume are for a conversation at a terminal")
    if not options.url and (options.key_file or options.remote_model) and not goes_on:
        raise click.UsageError("--key-file and --model go with --url")
    if not (options.model or options.url or options.go_on or options.resume):
        raise click.UsageError("name a MODEL: `decant list` shows them; or --url, or --continue")
    if options.go_on and options.resume:
        raise click.UsageError("--continue means the last conversation, --resume another: give one")


def is_conversation(options: Options) -> bool:
    if options.prompt is not None or options.as_json:
        return False
    return sys.stdin.isatty()


def sessions_folder() -> Path:
    return data_folder(os.environ) / "chats"


def show_sessions(*, as_json: bool) -> None:
    found = list_sessions(sessions_folder())
    if as_json:
        print_json([asdict(one) for one in found])
        return
    from time import localtime, strftime

    rows = [
        (
            without_controls(one.name or one.id),
            strftime("%Y-%m-%d %H:%M", localtime(one.modified)),
            str(one.turns),
            without_controls(one.model),
            without_controls(one.title)[:60],
        )
        for one in found
    ]
    print_table(("SESSION", "LAST", "TURNS", "MODEL", "BEGINS"), rows)


@contextmanager
def opened_engine(options: Options) -> Iterator[Engine]:
    """Start the engine that answers, and stop it after the block."""
    with ExitStack() as stack:
        with reporting(quiet=options.quiet or not sys.stderr.isatty()) as report:
            engine = remote_engine(options) if options.url else local_engine(options, report)
            stack.callback(engine.stop)
            if isinstance(engine, LocalEngine):
                if options.verbose:
                    for line in engine.fit.lines():
                        click.echo(line, err=True)
                engine.start()
        if isinstance(engine, LocalEngine) and not options.quiet:
            tell_of_texts(engine)
        yield engine


def tell_of_texts(engine: LocalEngine) -> None:
    """Print a note if the first answers have no chat template."""
    if engine.raw or engine.can_chat(opening_selection(engine)):
        return
    click.echo(
        f"note: {engine.model} {NO_TEMPLATE}, {RAW_TOKENS} tokens at a time (-n);"
        " --chat-template NAME gives it one",
        err=True,
    )


def remote_engine(options: Options) -> RemoteEngine:
    assert options.url is not None
    key = read_key(options.key_file) if options.key_file else None
    remote = parse_url(options.url, key)
    if remote.is_exposed:
        what = "the key and the conversation" if key else "the conversation"
        click.echo(f"warning: {what} will cross the network unencrypted (http)", err=True)
    return RemoteEngine(remote, options.remote_model or options.model, raw=options.raw)


def local_engine(options: Options, report: Report) -> LocalEngine:
    assert options.model is not None, "check() requires it"
    found = model_of(options.model, options.base, store(), report=report)
    beside = (found.adapter,) if found.adapter else ()
    adapters = bring_adapters(options.adapters, options.base, store(), report=report)
    model = open_model(found.path, (*beside, *adapters), options.projector)
    if options.chat_template:
        model = with_template(model, read_template(options.chat_template))
    fit_options = FitOptions(
        options.context, options.threads, force=options.force, gpu_layers=options.gpu_layers
    )
    speculation = speculation_of(options.spec, store(), report=report)
    is_kept = options.save and is_conversation(options)
    return LocalEngine(
        model,
        fit_options,
        raw=options.raw,
        speculation=speculation,
        prompt_folder=chat_prompts_folder(os.environ) if is_kept else None,
        report=report,
    )


def converse(options: Options) -> int:
    """Hold a conversation at the terminal; return the exit code."""
    from runtime.chat.repl.start import converse as run

    kept = opened_session(options)
    chosen_anew = bool(options.adapters)
    try:
        if kept is not None:
            options = as_before(options, kept.conversation)
        with opened_engine(options) as engine:
            folders = (store(), sessions_folder())
            return run(engine, kept, options, *folders, chosen_anew=chosen_anew)
    finally:
        if kept is not None:
            kept.close()


def opened_session(options: Options) -> Session | None:
    """The conversation that --continue or --resume names; None without them."""
    if not (options.go_on or options.resume):
        return None
    return resume(find_session(sessions_folder(), options.resume))


def as_before(options: Options, kept: Conversation) -> Options:
    """Complete the options from the conversation: its model, adapters or server."""
    if options.model or options.url:
        return options
    source = dict(kept.source)
    if not source:
        raise click.UsageError(f"name the MODEL to continue with; it was {kept.model}")
    if "url" in source and (options.adapters or options.projector or options.context):
        raise click.UsageError(
            f"it was held with the server {source['url']}: leave --adapter, --mmproj and --ctx out"
        )
    if options.adapters:
        source.pop("adapters", None)
    named = ("model", "url", "remote_model")
    changes: dict[str, Any] = {name: source[name] for name in named if name in source}
    if "chat_template" in source and not options.chat_template:
        changes["chat_template"] = source["chat_template"]
    if source.get("raw") and not options.chat_template:
        changes["raw"] = True
    if "adapters" in source:
        changes["adapters"] = tuple(source["adapters"])
    if "projector" in source and not options.projector:
        changes["projector"] = Path(source["projector"])
    return replace(options, **changes)


def answer_once(engine: Engine, question: str, options: Options) -> None:
    """Stream the answer to stdout, or print it whole as JSON."""
    text, thoughts = [], []
    stopped = Stopped("")
    messages: list[Message] = []
    if options.system:
        messages.append({"role": "system", "content": options.system})
    messages.append(user_message(engine, question, options.files))
    selection = opening_selection(engine) if isinstance(engine, LocalEngine) else AdapterSelection()
    raw = options.as_json or not sys.stdout.isatty()
    with closing(engine.answer(messages, sent(options.settings), selection)) as pieces:
        for piece in pieces:
            match piece:
                case Delta():
                    text.append(piece.text)
                    if not options.as_json:
                        click.echo(piece.text if raw else without_controls(piece.text), nl=False)
                case Thought():
                    thoughts.append(piece.text)
                case Stopped():
                    stopped = piece
    if options.as_json:
        print_json(as_json(engine, selection, "".join(text), "".join(thoughts), stopped))
        return
    click.echo()
    if options.stats:
        from runtime.chat.repl.loop import numbers_text

        click.echo(numbers_text(stopped, answerer(engine, selection)), err=True)


def user_message(engine: Engine, question: str, files: tuple[Path, ...]) -> Message:
    """The user's message with its files. Raises InputError for an image without a projector."""
    images = [path for path in files if is_image(path)]
    if images and not engine.sees:
        raise InputError(
            f"{engine.model} takes no images: it has no projector (mmproj)",
            hint="name one with --mmproj FILE",
        )
    texts = [read_text(path, NO_TEXT) for path in files if path not in images]
    shown = tuple(read_image(path) for path in images)
    return Turn("\n\n".join([*texts, question]), shown).messages()[0]


def as_json(
    engine: Engine, selection: AdapterSelection, text: str, thoughts: str, stopped: Stopped
) -> Mapping[str, object]:
    found: dict[str, object] = {
        "model": engine.facts()["model"],
        "adapter": selection.adapter or None,
        "scale": selection.scale if selection.adapter else None,
        "answer": text,
        "finish_reason": stopped.reason,
        "prompt_tokens": stopped.prompt_tokens,
        "cached_tokens": stopped.cached_tokens,
        "tokens": stopped.tokens,
        "tokens_per_second": round(stopped.tokens_per_second, 1),
        "first_token_s": round(stopped.first_token_s, 3),
    }
    return found | ({"reasoning": thoughts} if thoughts else {})


def read_stdin() -> str:
    """The question on standard input. Raises UsageError without one, InputError if not UTF-8."""
    if sys.stdin.isatty():
        raise click.UsageError(NOTHING_TO_ASK.format("standard input is the terminal"))
    try:
        question = sys.stdin.buffer.read().decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input is not text in UTF-8: byte {error.start}", hint="convert it first"
        ) from error
    if not question:
        raise click.UsageError(NOTHING_TO_ASK.format("standard input is empty"))
    return question
