"""The project's source files and their syntax trees, read once for all rules about them."""

from __future__ import annotations

import ast
import gc
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("exporter", "runtime", "vendor")
FILES = sorted(path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py"))

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


@cache
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def tree(path: Path) -> ast.Module:
    gc.disable()  # a tree has no cycles, and the search for them would take half of the time
    try:
        return ast.parse(text(path))
    finally:
        gc.enable()


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))
