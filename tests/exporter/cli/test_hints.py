"""Every command that an error advises exists, with every option that stands behind it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from exporter.cli.app import COMMANDS, root
from tests.support.source_tree import nodes

pytestmark = pytest.mark.lasting

CHECKOUT = Path(__file__).parents[3]
FILES = sorted(path for part in ("exporter", "runtime") for path in (CHECKOUT / part).rglob("*.py"))
ADVICE = re.compile(r"\bdecant ([a-z][a-z-]*)\b([^`;\n]*)")
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
ANYWHERE = {"--help", "--version"}


def texts(path: Path) -> Iterator[str]:
    """Every text in a file's code that is no docstring; what is filled in is X."""
    every = nodes(path)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {
        node.body[0].value
        for node in every
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    inside = {part for node in every if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in every:
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "X" for p in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and node not in docs and node not in inside:
            yield str(node.value)


@cache
def all_texts() -> tuple[tuple[Path, str], ...]:
    return tuple((path, text) for path in FILES for text in texts(path) if "decant " in text)


def advised() -> Iterator[tuple[str, str, str]]:
    """Each piece of advice: where it stands, the command, and what follows it."""
    for path, text in all_texts():
        for found in ADVICE.finditer(text):
            if found[1] in COMMANDS:
                yield f"{path.relative_to(CHECKOUT)}: {text[:80]}", found[1], found[2]


def options_of(name: str) -> set[str]:
    command = root.get_command(click.Context(root), name)
    assert command is not None
    return {option for one in command.params for option in (*one.opts, *one.secondary_opts)}


@pytest.mark.parametrize("name", COMMANDS)
def test_advice_names_options_that_the_command_has(name):
    known = options_of(name) | ANYWHERE
    wrong = {
        where: option
        for where, command, rest in advised()
        if command == name
        for option in OPTION.findall(rest)
        if option not in known
    }

    assert wrong == {}


def test_advice_names_commands_that_there_are():
    told = {
        found[1]
        for _, text in all_texts()
        for found in re.finditer(r"`decant ([a-z][a-z-]*)", text)
    }

    assert told <= set(COMMANDS)
    assert len(list(advised())) > 50
