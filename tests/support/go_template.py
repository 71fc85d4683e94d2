"""What Ollama does with a Modelfile: just the words that decant writes, after Go's templates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


def parse_modelfile(text: str) -> dict[str, list[str]]:
    """{instruction: its values}, by the rules of Ollama's parser."""
    found: dict[str, list[str]] = {}
    while text.strip():
        name, _, rest = text.lstrip("\n").partition(" ")
        if name == "PARAMETER":
            name, _, rest = rest.partition(" ")
        for quotes in ('"""', '"', ""):
            if rest.startswith(quotes):
                end = rest.index(f"{quotes}\n", len(quotes))
                value, text = rest[len(quotes) : end], rest[end + len(quotes) + 1 :]
                break
        found.setdefault(name, []).append(value)
    return found


def answer_prompt(
    modelfile: str, messages: list[dict[str, str]], *, think: bool | None = None
) -> str:
    """The text that Ollama would have the model continue, without the tokens it adds itself.

    think: as a request says; where it says nothing, Ollama has models think that can.
    """
    said = parse_modelfile(modelfile)
    if "SYSTEM" in said and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": said["SYSTEM"][0]}, *messages]
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    collated: list[dict[str, str]] = []
    for message in messages:
        if collated and collated[-1]["role"] == message["role"]:
            collated[-1]["content"] += "\n\n" + message["content"]
        else:
            collated.append(dict(message))
    can_think = ".Thinking" in said["TEMPLATE"][0]
    think = can_think or None if think is None else think
    data = {
        "System": system,
        "IsThinkSet": think is not None,
        "Think": bool(think),
        "Messages": [
            {"Role": m["role"], "Content": m["content"], "Thinking": m.get("thinking", "")}
            for m in collated
        ],
    }
    return execute(said["TEMPLATE"][0], data)


@dataclass
class Block:
    """An action and what it holds."""

    words: str
    inside: list[Any] = field(default_factory=list)
    otherwise: list[Any] = field(default_factory=list)


def execute(template: str, data: dict[str, Any]) -> str:
    parts = re.split(r"(\{\{.*?\}\})", template, flags=re.DOTALL)
    tree, rest = parse(iter([part for part in parts if part]))
    assert rest == "", rest
    return "".join(run(tree, data, {"$": data}))


def parse(parts: Iterator[str]) -> tuple[list[Any], str]:
    """Nodes up to `end` or `else`, and which of them it was."""
    nodes: list[Any] = []
    for part in parts:
        if not part.startswith("{{"):
            nodes.append(part)
            continue
        assert not part.startswith("{{-"), "white space would be trimmed"
        words = part[2:-2].strip()
        if words in ("end", "else"):
            return nodes, words
        block = Block(words)
        nodes.append(block)
        if words.startswith(("if ", "range ")):
            block.inside, closed = parse(parts)
            if closed == "else":
                block.otherwise, closed = parse(parts)
            assert closed == "end", words
    return nodes, ""


def run(nodes: list[Any], dot: Any, names: dict[str, Any]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif node.words.startswith("range "):
            found = re.fullmatch(r"range \$i, \$_ := (\S+)", node.words)
            for i, item in enumerate(value(found[1], dot, names)):
                yield from run(node.inside, item, names | {"$i": i, "$_": item})
        elif node.words.startswith("if "):
            chosen = node.inside if value(node.words[3:], dot, names) else node.otherwise
            yield from run(chosen, dot, names)
        elif ":=" in node.words:
            name, _, words = node.words.partition(" := ")
            names[name] = value(words, dot, names)
        else:
            yield str(value(node.words, dot, names))


FUNCTIONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: a and b,
    "not": lambda a: not a,
    "len": len,
    "slice": lambda a, n: a[n:],
}


def value(words: str, dot: Any, names: dict[str, Any]) -> Any:
    """A pipeline without pipes: literals, fields, variables and calls in prefix order."""
    tokens = re.findall(r'"[^"]*"|[()]|[^\s()]+', words)
    result, left = expression(tokens, dot, names)
    assert left == [], words
    return result


def expression(tokens: list[str], dot: Any, names: dict[str, Any]) -> tuple[Any, list[str]]:
    if tokens[0] in FUNCTIONS:
        arguments, left = [], tokens[1:]
        while left and left[0] != ")":
            argument, left = operand(left, dot, names)
            arguments.append(argument)
        return FUNCTIONS[tokens[0]](*arguments), left
    return operand(tokens, dot, names)


def operand(tokens: list[str], dot: Any, names: dict[str, Any]) -> tuple[Any, list[str]]:
    first, left = tokens[0], tokens[1:]
    if first == "(":
        inner, left = expression(left, dot, names)
        assert left[0] == ")"
        return inner, left[1:]
    if first.startswith('"'):
        return first[1:-1], left
    if first.isdecimal():
        return int(first), left
    if first.startswith("."):
        return dot[first[1:]], left
    name, _, key = first.partition(".")
    return (names[name][key] if key else names[name]), left
