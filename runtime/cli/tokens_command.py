"""The command `decant tokens`: shows how a model tokenizes a text."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from exporter.cli import completing
from exporter.cli.app import colours
from exporter.cli.common_options import given, json_option, offline_option, store
from exporter.cli.terminal_renderer import print_json, reporting
from exporter.core.errors import InputError
from exporter.core.events import Event, Report
from exporter.core.gguf import read_gguf
from exporter.llamacpp.toolchain import find_toolchain
from exporter.model_store import find_model
from runtime.engine.adapters import Adapter, check_adapter, gguf_of, parse_adapter
from runtime.engine.gguf_tokenizer import (
    Token,
    Tokenization,
    Tokenizer,
    escaped,
    open_tokenizer,
    template_of,
    tokenize,
    tokenize_chat,
)
from runtime.engine.own_template import OwnTemplate, own_template
from runtime.engine.template_choice import HELP, read_template
from runtime.process.forked_child import continue_in_child

ROWS = 1000  # tokens listed on a terminal; a pipe gets all
PIECE_COLUMNS = 20  # the greatest width of the column PIECE
# of the 256 colours: black on light ones and, for special tokens, white on dark ones, so that the
# terminal's own colours do not matter
BLACK, LIGHT = 16, (153, 223, 151, 183)
WHITE, DARK = 231, (124, 90)
SHAPES = {"as_ids": "--ids", "as_json": "--json", "show_template": "--template"}
SEPARATOR = "|"


@click.command(epilog='Example: decant tokens my-lora "What is the capital of France?"')
@click.argument("model", shell_complete=completing.models)
@click.argument("text", required=False)
@click.option("--chat", "as_chat", is_flag=True, help="Use TEXT as a question in the template.")
@click.option("--system", help="System message; with --chat.")
@click.option(
    "--adapter", metavar="PATH",
    help="Use the chat template of this adapter, a folder or a GGUF; with --chat.",
)  # fmt: skip
@click.option("--chat-template", metavar="NAME|FILE", help=HELP)
@click.option(
    "--special/--no-special",
    default=True,
    help="Whether to add the tokens that the model expects, such as <s>; added by default.",
)
@click.option("--plain", is_flag=True, help="Read special tokens such as </s> in TEXT as letters.")
@click.option("--ids", "as_ids", is_flag=True, help="Print the ids alone, on one line.")
@click.option("--template", "show_template", is_flag=True, help="Print the chat template instead.")
@offline_option
@json_option
def tokens(
    model: str,
    text: str | None,
    as_chat: bool,
    system: str | None,
    adapter: str | None,
    chat_template: str | None,
    special: bool,
    plain: bool,
    as_ids: bool,
    show_template: bool,
    as_json: bool,
) -> None:
    """Show how MODEL, a stored model or a GGUF, tokenizes TEXT, or standard input."""
    refuse_contradictions(system)
    path, chosen = find(model), read_template(chat_template) if chat_template else None
    toolchain = find_toolchain()
    if click.get_current_context().find_root().obj:
        continue_in_child(path)
    own = own_template_of_adapter(adapter, path, chosen) if adapter else None
    with open_tokenizer(path, toolchain, own, chosen) as tokenizer:
        if show_template:
            print_template(tokenizer)
            return
        given_text = read_text(text)
        if as_chat:
            messages = [{"role": "system", "content": system}] if system is not None else []
            messages.append({"role": "user", "content": given_text})
            found = tokenize_chat(tokenizer, messages)
        else:
            found = tokenize(tokenizer, given_text, special=special, parse=not plain)
        if as_json:
            print_json(described(found, tokenizer, as_chat=as_chat))
        elif as_ids:
            click.echo(" ".join(str(token.id) for token in found.tokens))
        elif sys.stdout.isatty():
            draw(found, tokenizer, as_chat=as_chat)
        else:
            print_lines(found.tokens)


def find(model: str) -> Path:
    """The GGUF of a name. Only a pull draws a progress bar, as drawing loads rich."""
    with ExitStack() as stack:
        reports: list[Report] = []

        def report(event: Event) -> None:
            if not reports:
                reports.append(stack.enter_context(reporting()))
            reports[0](event)

        return find_model(model, store(), report=report)


def own_template_of_adapter(text: str, base: Path, chosen: str | None) -> OwnTemplate | None:
    """An adapter's template; a folder is converted first. Raises the errors of converting."""
    with reporting() as report:
        found = gguf_of(parse_adapter(text), None, store(), report=report)
    adapter = Adapter("adapter", found, 1.0)
    check_adapter(adapter, read_gguf(base))
    return own_template(found, base, chosen)


def refuse_contradictions(system: str | None) -> None:
    """Raise UsageError for an option that has no effect beside another."""
    values = click.get_current_context().params
    if values["as_chat"]:
        if given("special") or values["plain"]:
            raise click.UsageError(
                "--chat takes its special tokens from the template:"
                " leave --special, --no-special and --plain out"
            )
    elif system is not None:
        raise click.UsageError("--system is a message of a chat: add --chat")
    elif (values["adapter"] or values["chat_template"]) and not values["show_template"]:
        raise click.UsageError("--adapter and --chat-template are for a chat: add --chat")
    shapes = [option for name, option in SHAPES.items() if values[name]]
    if len(shapes) > 1:
        raise click.UsageError(f"{' and '.join(shapes)} exclude each other")
    if values["show_template"] and values["text"] is not None:
        raise click.UsageError("--template prints the template alone: leave TEXT out")


def read_text(text: str | None) -> str:
    """TEXT, or all of standard input, unchanged. Raises UsageError without one, and InputError."""
    if text is not None and text != "-":
        return decoded(os.fsencode(text), "the text")
    if sys.stdin.isatty():
        raise click.UsageError("nothing to tokenize: pass TEXT, or text on standard input")
    return decoded(sys.stdin.buffer.read(), "standard input")


def decoded(raw: bytes, what: str) -> str:
    """The text of UTF-8 bytes. Raises InputError for other bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} is not UTF-8: byte 0x{raw[error.start]:02x} at {error.start}",
            hint="convert it first, such as with `iconv -t UTF-8`",
        ) from error


def described(found: Tokenization, tokenizer: Tokenizer, *, as_chat: bool) -> dict[str, object]:
    """Everything about the tokens, for --json."""
    chat = {"prompt": found.text, "template": template_of(tokenizer)} if as_chat else {}
    return {
        "model": str(tokenizer.header.path),
        "tokens": [
            {
                "id": token.id,
                "text": token.text,
                "bytes": token.bytes.hex(),
                "special": token.special,
                "added": token.added,
            }
            for token in found.tokens
        ],
        "count": len(found.tokens),
        "characters": len(found.text),
        "nbytes": len(found.text.encode()),
        "exact": found.is_exact,
        "special_tokens": {
            name: {"id": token.id, "text": token.text}
            for name, token in tokenizer.special_tokens.items()
        },
        **chat,
    }


def print_lines(found: Sequence[Token]) -> None:
    """Print id, piece as JSON (null for a part of a character) and bytes, one token per line."""
    lines = {
        token: f"{token.id}\t{json.dumps(token.text, ensure_ascii=False)}\t{token.bytes.hex(' ')}\n"
        for token in set(found)
    }
    click.echo("".join(lines[token] for token in found), nl=False)  # echo flushes each time


def print_template(tokenizer: Tokenizer) -> None:
    template = template_of(tokenizer)
    click.echo(escaped(template, keep="\n\t") if sys.stdout.isatty() else template)


def draw(found: Tokenization, tokenizer: Tokenizer, *, as_chat: bool) -> None:
    """Print for people: the text in colours, its tokens one per line, and the counts."""
    coloured = colours(terminal=True)
    names = names_of(tokenizer)
    if found.tokens:
        click.echo(painted(found.tokens) if coloured else separated(found.tokens))
        click.echo()
        for line in table(found.tokens[:ROWS], names):
            click.echo(line)
        if len(found.tokens) > ROWS:
            click.echo(f"… and {len(found.tokens) - ROWS} more: --ids, --json or a pipe lists all")
        click.echo()
    click.echo(sums(found))
    for line in remarks(found, tokenizer, as_chat=as_chat):
        click.echo(line)


def painted(found: Sequence[Token]) -> str:
    """The text, with a background that changes at each token and is dark for special ones."""
    parts = []
    for number, token in enumerate(found):
        ink, papers = (WHITE, DARK) if token.special else (BLACK, LIGHT)
        paper = papers[number % len(papers)]
        # a newline stays plain: terminals paint the rest of the line with its background
        lines = in_line(token).split("\n")
        parts.append("\n".join(line and click.style(line, fg=ink, bg=paper) for line in lines))
    return "".join(parts)


def separated(found: Sequence[Token]) -> str:
    return SEPARATOR.join(in_line(token) for token in found)


def in_line(token: Token) -> str:
    """A token within the text, its newlines and tabs marked."""
    text = escaped(token.bytes.decode(errors="backslashreplace"), keep="\n\t")
    return text.replace("\n", "↵\n").replace("\t", "→\t")


def table(found: Sequence[Token], names: dict[int, str]) -> list[str]:
    """Number, id, piece, bytes and, for special tokens, their roles; in aligned columns."""
    rows = [
        (str(number), str(token.id), quoted(token), token.bytes.hex(" "), what(token, names))
        for number, token in enumerate(found, 1)
    ]
    header = ("#", "ID", "PIECE", "BYTES", "")
    rows.insert(0, header)
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    third = min(PIECE_COLUMNS, max(columns(row[2]) for row in rows))
    return [
        f"{row[0]:>{first}}  {row[1]:>{second}}  {row[2]}{' ' * (third - columns(row[2]))}"
        f"  {row[3]}{'  ' if row[4] else ''}{row[4]}"
        for row in rows
    ]


def quoted(token: Token) -> str:
    """A piece on one line, its spaces visible; bytes of a partial character as `\\xe4`."""
    return repr(token.text) if token.text is not None else ascii(token.bytes)[1:]


def what(token: Token, names: dict[int, str]) -> str:
    if not token.special:
        return "added" if token.added else ""
    return f"{names.get(token.id, 'special')}{', added' if token.added else ''}"


def columns(text: str) -> int:
    """The width of a text on a terminal."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def names_of(tokenizer: Tokenizer) -> dict[int, str]:
    """The roles of special tokens, by id; one token may have several."""
    names: dict[int, str] = {}
    for name, token in tokenizer.special_tokens.items():
        names[token.id] = f"{names[token.id]}/{name}" if token.id in names else name
    return names


def sums(found: Tokenization) -> str:
    text = f"{counted(len(found.tokens), 'token')}"
    if found.added:
        text += f" ({len(found.added)} added)"
    nbytes = len(found.text.encode())
    text += f", {counted(len(found.text), 'character')}, {counted(nbytes, 'byte')}"
    own = len(found.tokens) - len(found.added)
    return f"{text}; {len(found.text) / own:.2f} characters a token" if own else text


def counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def remarks(found: Tokenization, tokenizer: Tokenizer, *, as_chat: bool) -> list[str]:
    """Notes on facts that the tokens alone do not show."""
    lines = []
    if not found.is_exact:
        does = "puts a space before texts" if tokenizer.begins_with_space else "changes it"
        lines.append(f"the tokens do not spell the text exactly: the tokenizer {does}")
    if tokenizer.puts_spaces and any(token.special and not token.added for token in found.tokens):
        lines.append("llama.cpp puts a space after each special token too")
    if as_chat:
        special = tokenizer.special_tokens
        listed = [f"{name} {t.id} {escaped(t.text or '')}" for name, t in special.items()]
        lines.append(f"special tokens: {', '.join(listed) or 'none'}")
        bos, first = special.get("bos"), found.tokens[:1]
        if bos and tokenizer.vocabulary.adds_bos() and (not first or first[0].id != bos.id):
            lines.append(
                f"the template writes no {escaped(bos.text or '')}: llama.cpp alone would add it,"
                " transformers and decant do not"
            )
    return lines
