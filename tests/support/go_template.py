"""Ollama's use of a Modelfile: the part of Go's templates that decant writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
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
    modelfile: str,
    messages: Sequence[dict[str, Any]],
    *,
    think: bool | None = None,
    tools: Sequence[dict[str, Any]] = (),
) -> str:
    """The prompt that Ollama makes, without the tokens that it adds itself.

    think: the request's field; without it, Ollama lets models think that can.
    """
    said = parse_modelfile(modelfile)
    if "SYSTEM" in said and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": said["SYSTEM"][0]}, *messages]
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    collated: list[dict[str, Any]] = []
    for message in messages:
        if collated and collated[-1]["role"] == message["role"] != "tool":
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
            {
                "Role": m["role"],
                "Content": m["content"],
                "Thinking": m.get("thinking", ""),
                "ToolCalls": [of_go(call) for call in m.get("tool_calls", [])],
            }
            for m in collated
        ],
        "Tools": [Struct(of_go(tool), tool) for tool in tools],
    }
    return execute(said["TEMPLATE"][0], data)


class Struct(dict[str, Any]):
    """A value with Go's field names for templates, and its source for JSON."""

    def __init__(self, fields: dict[str, Any], source: Any) -> None:
        super().__init__(fields)
        self.source = source


def of_go(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool, or a call of one, with the names of Ollama's fields."""
    function = tool["function"]
    fields = {name.capitalize(): held for name, held in function.items()}
    return {"Function": Struct(fields, function)}


def as_json(held: Any) -> str:
    """JSON as Go's encoding/json writes it: without spaces, and with <, > and & escaped."""
    text = json.dumps(getattr(held, "source", held), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def in_one_form(text: str) -> str:
    """The text with its JSON objects rewritten with sorted keys, because Ollama orders them."""
    start = text.find("{")
    while start >= 0:
        try:
            held, end = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            start = text.find("{", start + 1)
            continue
        told = json.dumps(held, sort_keys=True, separators=(",", ":"))
        text = text[:start] + told + text[end:]
        start = text.find("{", start + len(told))
    return text


def call_tag(template: str) -> str:
    """The text that marks the beginning of a tool call for Ollama: see its tools/template.go."""
    parts = re.split(r"(\{\{.*?\}\})", template, flags=re.DOTALL)
    tree, _ = parse(iter([part for part in parts if part]))
    found = tool_call_node(tree)
    text = first_text(found.inside) if found else None
    return (text or "").partition("{")[0].strip() or "{"


def tool_call_node(nodes: list[Any]) -> Block | None:
    for node in nodes:
        if not isinstance(node, Block):
            continue
        if node.words.startswith("if ") and re.search(r"(?<!\S)\.ToolCalls\b", node.words):
            return node
        if found := tool_call_node(node.inside) or tool_call_node(node.otherwise):
            return found
    return None


def first_text(nodes: list[Any]) -> str | None:
    for node in nodes:
        if isinstance(node, str):
            if node.strip():
                return node
        elif node.words.startswith(("if ", "range ")):
            return first_text(node.inside) or first_text(node.otherwise)
        else:
            return None
    return None


@dataclass
class Block:
    """An action of a template, with the nodes inside."""

    words: str
    inside: list[Any] = field(default_factory=list)
    otherwise: list[Any] = field(default_factory=list)


def execute(template: str, data: dict[str, Any]) -> str:
    parts = re.split(r"(\{\{.*?\}\})", template, flags=re.DOTALL)
    tree, rest = parse(iter([part for part in parts if part]))
    assert rest == "", rest
    return "".join(run(tree, data, {"$": data}))


def parse(parts: Iterator[str]) -> tuple[list[Any], str]:
    """The nodes up to `end` or `else`, and which of the two came."""
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
            found = re.fullmatch(r"range (\$\w+), \$_ := (\S+)", node.words)
            for i, item in enumerate(value(found[2], dot, names)):
                yield from run(node.inside, item, names | {found[1]: i, "$_": item})
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
    "index": lambda a, n: a[n],
    "json": as_json,
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
    if first == ".":
        return dot, left
    if first.startswith("."):
        for key in first[1:].split("."):
            dot = dot[key]
        return dot, left
    name, _, key = first.partition(".")
    return (names[name][key] if key else names[name]), left
