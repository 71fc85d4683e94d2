"""The words the code keeps: plain sentences, with shapes, errors and sources where they matter."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from exporter.core import errors
from tests.support.documents import PAGES
from tests.support.source_tree import FILES, Function, name, nodes, text, tree

ENGLISH = [page for page in PAGES if page.parent.name != "zh" and "zh-CN" not in page.name]

PHRASES = (
    r"whoever", r"told", r"(gone|going|goes|go) on with", r"of (its|their|his|our|your) own",
    r"(theirs|likewise|down)\.$", r"heed", r"known (for )?dead", r"those who\b", r"nothing yet",
    r"need be", r"to be had", r"(no|any|every)body", r"afresh|anew", r"(has|have) not[.,;:]",
    r"and its kin", r"(to|from|by|with) whom", r"in its stead", r"this goes for", r"what there is",
    r"take it for granted", r"as good as", r"is (there )?all the same", r"betrays?",
    r"mend(ed|ing)", r"hollow", r"without (any)?one's", r"may be gone", r"be let",
    r"begin (it )?over", r"lets? .{1,30} be known", r"who(se)? way",
)  # fmt: skip
"""Turns of phrase that a reader stumbles over; a plain verb says each of them."""
DENIED = re.compile(rf"\b(?:{'|'.join(PHRASES)})", re.IGNORECASE | re.MULTILINE)
RELATIVE = re.compile(r"(What|Those|That which) ")
"""A docstring begins with the noun or the verb, not with "What is …"."""
NAMES = {"told", "said", "asked", "heard", "mend", "mends", "mended", "hollow", "crew", "voice"}
"""Words that no name has as a part: the field has a noun for what each of them was given to."""
WORDS = 3
LEAST_OF_A_CONSTRUCTOR = 8

ARRAYS = re.compile(
    r"\b(?:torch\.Tensor|np\.ndarray|NDArray|LazyTensor|Tensor|Floats|Integers|Pixels)\b(?!Info)"
)
"""Types of values with a shape."""
SIZE = r"(?:…|\.\.\.|[\w.]+(?: ?[*+/-] ?[\w.]+)*)"
SHAPE = re.compile(rf"\({SIZE},(?: {SIZE},?)*\)|\(…\)|\(\)")
"""Such as (rows, columns), (n,) or (…, columns)."""
OURS = {n for n, kind in vars(errors).items() if isinstance(kind, type)} | {"BuildError"}
NUMBER = ast.Constant | ast.BinOp | ast.UnaryOp


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Each docstring of a file with its line: of modules, classes, functions, fields, constants."""
    for node in nodes(path):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield node.lineno, value.value


def forced(path: Path) -> Iterator[str]:
    """Constructors whose docstring says nothing that the parameters' names do not."""
    for node in nodes(path):
        if isinstance(node, Function) and node.name == "__init__":
            said = ast.get_docstring(node)
            if said and len(words(said)) <= LEAST_OF_A_CONSTRUCTOR:
                yield f"{node.lineno}: {said}"


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Each comment and string of a Python file, or line of a page, with its line number."""
    lines = enumerate(text(path).splitlines(), 1)
    if path.suffix == ".md":
        yield from lines
        return
    yield from ((number, line[line.index("#") :]) for number, line in lines if "#" in line)
    for node in nodes(path):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, re.sub(r"(?<=\S)\n *(?=\S)", " ", node.value)


def words(said: str) -> list[str]:
    return re.findall(r"\w[\w'.-]*", said)


def annotations(function: Function) -> str:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    types = [argument.annotation for argument in every] + [function.returns]
    return " ".join(ast.unparse(kind) for kind in types if kind)


def raised(function: Function) -> set[str]:
    """Our errors that a function's body raises by name, nested functions left out.

    A command's docstring is its --help, which names no exceptions.
    """
    if any("command" in ast.dump(decorator) for decorator in function.decorator_list):
        return set()
    found: set[str] = set()
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, Function):
            continue
        if isinstance(node, ast.Raise) and node.exc:
            kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            found |= {ast.unparse(kind).rpartition(".")[2]} & OURS
        todo += ast.iter_child_nodes(node)
    return found


def is_bare_number(value: ast.expr | None) -> bool:
    """Whether a value is numbers and operators only, beyond 0, 1 and 2."""
    if value is None or not isinstance(value, NUMBER):
        return False
    leaves = [node for node in ast.walk(value) if isinstance(node, ast.expr)]
    numbers = [node.value for node in leaves if isinstance(node, ast.Constant)]
    return (
        all(isinstance(node, NUMBER) for node in leaves)
        and all(type(number) in (int, float) for number in numbers)
        and any(number not in (0, 1, 2) for number in numbers)
    )


def unexplained(path: Path) -> Iterator[str]:
    """Numbers among a module's constants without a comment or a docstring."""
    lines = text(path).splitlines()
    body = tree(path).body
    for node, after in pairwise([*body, None]):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not is_bare_number(node.value):
            continue
        is_explained = (
            isinstance(after, ast.Expr)
            or "#" in lines[node.end_lineno - 1]
            or lines[node.lineno - 2].startswith("#")
        )
        if not is_explained:
            yield f"{name(path)}:{node.lineno} {lines[node.lineno - 1]}"


def test_no_phrase_is_one_that_readers_stumble_over():
    found = [
        f"{name(path)}:{line}: {hit[0]}"
        for path in (*FILES, *ENGLISH)
        for line, said in prose(path)
        for hit in DENIED.finditer(said)
    ]

    assert not found


def test_names_are_the_fields():
    found = {
        f"{name(path)}:{token.start[0]} {token.string}"
        for path in FILES
        if any(word in text(path).lower() for word in NAMES)
        for token in tokenize.generate_tokens(io.StringIO(text(path)).readline)
        if token.type == tokenize.NAME and NAMES & set(token.string.lower().split("_"))
    }

    assert not found


def test_docstrings_are_sentences():
    every = [(name(path), *found) for path in FILES for found in docstrings(path)]
    short = [f"{file}:{line}: {said}" for file, line, said in every if len(words(said)) < WORDS]
    relative = [f"{file}:{line}: {said}" for file, line, said in every if RELATIVE.match(said)]

    assert not short
    assert not relative


def test_constructors_have_no_docstring_for_its_sake():
    assert not [f"{name(path)}:{found}" for path in FILES for found in forced(path)]


def test_functions_over_tensors_give_shapes():
    missing = [
        f"{name(path)}:{node.lineno} {node.name}"
        for path in FILES
        for node in tree(path).body
        if isinstance(node, Function)
        and ARRAYS.search(annotations(node))
        and not SHAPE.search(ast.get_docstring(node) or "")
    ]

    assert not missing


def test_public_functions_name_the_errors_that_they_raise():
    missing = [
        f"{name(path)}:{node.lineno} {node.name}: {', '.join(sorted(unnamed))}"
        for path in FILES
        for node in nodes(path)
        if isinstance(node, Function) and not node.name.startswith("_")
        if (unnamed := {e for e in raised(node) if e not in (ast.get_docstring(node) or "")})
    ]

    assert not missing


def test_numbers_say_their_unit_or_their_source():
    assert not [found for path in FILES for found in unexplained(path)]


@pytest.mark.parametrize(
    "phrase",
    ["the adapter is told", "A number of its own.", "Likewise.", "Nothing yet", "JSON has not."],
)
def test_the_phrases_are_recognized(phrase):
    assert DENIED.search(phrase)


@pytest.mark.parametrize("shape", ["(rows, columns)", "(n,)", "(…, n_in)", "(rows, 2 * columns)"])
def test_shapes_are_recognized(shape):
    assert SHAPE.search(f"Values: {shape}, float32.")


@pytest.mark.parametrize("other", ["(rows)", "(see PEFT)", "no shape"])
def test_other_brackets_are_no_shapes(other):
    assert not SHAPE.search(f"Values: {other}.")
