"""The texts that a chat template writes around tools, found by rendering marker words.

It covers templates that write tools and arguments as JSON and list all tools before the first
question. Ollama's limits: https://github.com/ollama/ollama, folders template and tools.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from exporter.inputs.chat_template import IrregularError, Messages
from exporter.inputs.template_rendering import Rendering, Tool

SYSTEM, QUESTIONS = "\ue001s\ue002", ("\ue001u\ue002", "\ue001v\ue002")
ANSWER, RESULTS = "\ue001a\ue002", ("\ue001r\ue002", "\ue001t\ue002")
NAMES, VALUES = ("\ue001f\ue002", "\ue001g\ue002"), ("\ue001x\ue002", "\ue001y\ue002")
ID = "call00001"
QUOTE = '\ue001"\n\ue002'
TOOLS = "\ue001tools\ue002"
ARGUMENTS = tuple(f"\ue001arguments {value}" for value in VALUES)


@dataclass(frozen=True, slots=True)
class ToolTurns:
    """The texts that a template puts around tools, calls and their results."""

    opening: tuple[str, ...]
    """Text up to the first question without a system message; TOOLS marks the tools."""
    opening_with_system: tuple[str, ...] | None
    """`opening` with a system message, marked by SYSTEM; None if the template ignores one."""
    is_function_only: bool
    """Whether a tool is written as its `function` alone."""
    between_tools: str
    call: str
    """Text from the start of an answer to the name of the called function."""
    to_arguments: str
    """Text between the name and the arguments."""
    between_calls: str | None
    """Text between the arguments and the name of the next call in one answer; None if a template
    allows one call per answer."""
    after_content: str | None
    """Text between an answer's content and `call`; None if the template drops the content."""
    to_result: str
    """Text between the arguments and the result."""
    between_results: str
    to_answer: str
    """Text between a result and the answer."""
    to_question: str
    """Text between a result and a question."""
    closing: str
    """Text after a final result, where the answer begins."""
    result_is_json: bool = False
    """Whether a result is written as a JSON string."""
    closing_off: str | None = None
    """`closing` with thinking turned off."""

    @property
    def texts(self) -> tuple[str, ...]:
        openings = (*self.opening, *(self.opening_with_system or ()))
        return (
            *(text for text in openings if text not in (SYSTEM, TOOLS)), self.between_tools,
            self.call, self.to_arguments, self.between_calls or "", self.after_content or "",
            self.to_result, self.between_results, self.to_answer, self.to_question, self.closing,
            self.closing_off or "",
        )  # fmt: skip

    def open(self, system: str, tools: Sequence[Tool]) -> str:
        """The text up to the first question."""
        pieces = self.opening_with_system if system and self.opening_with_system else self.opening
        listed = [tool["function"] if self.is_function_only else tool for tool in tools]
        written = self.between_tools.join(map(json.dumps, listed))
        return "".join({SYSTEM: system, TOOLS: written}.get(piece, piece) for piece in pieces)


def tool_of(name: str) -> dict[str, Any]:
    """A function with one parameter, as OpenAI's API describes it."""
    parameters = {
        "type": "object",
        "properties": {"x": {"type": "string", "description": "A word"}},
        "required": ["x"],
    }
    function = {"name": name, "description": "Looks a word up.", "parameters": parameters}
    return {"type": "function", "function": function}


def calling(*values: str, content: str = "") -> dict[str, Any]:
    """An answer that calls one function for each value."""
    calls = [
        {"id": ID, "type": "function", "function": {"name": name, "arguments": {"x": value}}}
        for name, value in zip(NAMES, values, strict=False)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def result(content: str, name: str = NAMES[0]) -> dict[str, str]:
    return {"role": "tool", "name": name, "tool_call_id": ID, "content": content}


def asking(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def answering(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


ONE, TWO, RESULT = calling(VALUES[0]), calling(*VALUES), result(RESULTS[0])


def find_tools(render: Rendering, *, to_answer: str, closing: str, has_system: bool) -> ToolTurns:
    """The texts that a template puts around tools.

    to_answer: what it puts between a question and an answer; closing: what follows the last
    question. Raises IrregularError, with the reason, for a template that does more.
    """
    talk = [asking(QUESTIONS[0])]
    opening, is_function_only, between = cut_opening(render, talk, closing)
    with_system = None
    if has_system:
        with_system, *alike = cut_opening(
            render, [{"role": "system", "content": SYSTEM}, *talk], closing
        )
        if alike != [is_function_only, between]:
            raise IrregularError("how tools are listed depends on the system message")
    calls = Calls(render, to_answer)
    call, to_arguments, to_result, end = calls.cut(ONE, RESULT)
    *_, to_next, _, _ = calls.cut(ONE, RESULT, answering(ANSWER), asking(QUESTIONS[1]))
    off = calls.text(ONE, RESULT, thinks=False).rpartition(RESULTS[0])[2]
    found = ToolTurns(
        opening, with_system, is_function_only, between, call, to_arguments,
        calls.between(), calls.after_content(call), to_result,
        calls.before_last(ONE, RESULT, result(RESULTS[1])) or to_result, to_next,
        calls.before_last(ONE, RESULT, asking(QUESTIONS[1])) or to_next,
        end, closing_off=off if off != end else None,
    )  # fmt: skip
    if quoted(QUOTE) in calls.text(ONE, result(QUOTE)):
        found = with_quoted_results(found)
    if ID in "".join(found.texts):
        raise IrregularError("a call is known by an id, which Ollama does not hand to templates")
    check_tools(found, render, to_answer=to_answer, closing=closing)
    return found


def with_quoted_results(found: ToolTurns) -> ToolTurns:
    """`found` for results written as JSON strings, without the quotes around the results."""
    off = found.closing_off
    return replace(
        found,
        result_is_json=True,
        to_result=found.to_result.removesuffix('"'),
        between_results=found.between_results.removeprefix('"').removesuffix('"'),
        to_answer=found.to_answer.removeprefix('"'),
        to_question=found.to_question.removeprefix('"'),
        closing=found.closing.removeprefix('"'),
        closing_off=off.removeprefix('"') if off else off,
    )


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Calls:
    """Cuts a rendered conversation of one question, calls and their results into pieces."""

    render: Rendering
    to_answer: str

    def text(self, *messages: Mapping[str, Any], thinks: bool | None = None) -> str:
        """The text after the question and `to_answer`, with marker words for the arguments."""
        tools = [tool_of(name) for name in NAMES]
        whole = self.render([asking(QUESTIONS[0]), *messages], tools=tools, thinks=thinks)
        text = whole.partition(QUESTIONS[0])[2]
        if not text.startswith(self.to_answer):
            raise IrregularError("how a call begins depends on what stands around it")
        text = text.removeprefix(self.to_answer)
        for value, word in zip(VALUES, ARGUMENTS, strict=True):
            found = [place for place in objects(text, inside=True) if place[2] == {"x": value}]
            for start, stop, _ in found[:1]:
                text = text[:start] + word + text[stop:]
        return text

    def cut(self, *messages: Mapping[str, Any]) -> list[str]:
        """The texts before, between and after names, arguments and contents."""
        words: list[str] = []
        for message in messages:
            for place, _ in enumerate(message.get("tool_calls", ())):
                words += NAMES[place], ARGUMENTS[place]
            words += filter(None, [message["content"]])
        return cut(self.text(*messages), *words)

    def before_last(self, *messages: Mapping[str, Any]) -> str | None:
        """The text before the last content; None if a template refuses such a message."""
        with suppress(IrregularError):
            return self.cut(*messages)[-2]
        return None

    def between(self) -> str | None:
        """The text between two calls of one answer; None if a template allows one call."""
        with suppress(IrregularError):
            return self.cut(TWO, *map(result, RESULTS))[2]
        return None

    def after_content(self, call: str) -> str | None:
        """The text between an answer's content and its calls; None if the content is dropped."""
        rendered = self.text(calling(VALUES[0], content=ANSWER), RESULT)
        between, found, _ = rendered.partition(ANSWER)[2].partition(call)
        return between if found else None


def cut_opening(
    render: Rendering, talk: Messages, closing: str
) -> tuple[tuple[str, ...], bool, str]:
    """The pieces up to the first question, whether a tool is its function, and `between_tools`."""
    tools = [tool_of(name) for name in NAMES]
    before, question, after = render(talk, tools=tools).partition(QUESTIONS[0])
    if not question or after != closing:
        raise IrregularError("tools are not listed before the first question")
    forms = (tools, [tool["function"] for tool in tools])
    for is_function_only, listed in enumerate(forms):
        places = [place for place in objects(before) if place[2] in listed]
        if [place[2] for place in places] == listed:
            (first, first_end, _), (second, second_end, _) = places
            pieces = [before[:first], TOOLS, before[second_end:]]
            parts = [split for piece in pieces for split in apart(piece)]
            if any(name in piece for name in NAMES for piece in parts):
                raise IrregularError("tools are described in more than their JSON")
            return tuple(filter(None, parts)), bool(is_function_only), before[first_end:second]
    raise IrregularError("tools are not listed as JSON")


def apart(piece: str) -> Iterator[str]:
    """The piece, cut at SYSTEM."""
    before, found, after = piece.partition(SYSTEM)
    yield from (before, found, after)


def objects(text: str, *, inside: bool = False) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(start, end, object) of the JSON objects in a text. inside: those within others, too."""
    decoder, at = json.JSONDecoder(), 0
    while (at := text.find("{", at)) >= 0:
        try:
            held, end = decoder.raw_decode(text, at)
        except ValueError:
            at += 1
            continue
        yield at, end, held
        at = at + 1 if inside else end


def normalized(text: str) -> str:
    """The text with its JSON objects in one spacing and order."""
    parts, last = [], 0
    for start, end, held in objects(text):
        parts += [text[last:start], json.dumps(held, sort_keys=True)]
        last = end
    return "".join([*parts, text[last:]])


def check_tools(found: ToolTurns, render: Rendering, *, to_answer: str, closing: str) -> None:
    """Compare parts and template on several kinds of conversation. Raises IrregularError."""
    ask = asking("What is\nthe weather?")
    one, two, both = calling("Rome"), calling("Rome", "Oslo"), calling("Oslo", content="I look.")
    sunny, rainy = result("sunny, 22 °C"), result('{"sky": "rain"}', NAMES[1])
    talks: list[list[Mapping[str, Any]]] = [
        [ask], [ask, one, sunny], [ask, one, sunny, one, rainy], [ask, both, sunny],
    ]  # fmt: skip
    if found.between_calls is not None:
        talks.append([ask, two, sunny, rainy])
    systems = ("", "Be brief.") if found.opening_with_system else ("",)
    for system, talk, count in itertools.product(systems, talks, (1, 2)):
        tools = [tool_of(name) for name in NAMES][:count]
        first = [{"role": "system", "content": system}] if system else []
        expected = render([*first, *talk], tools=tools)
        text = found.open(system, tools) + around(found, talk, to_answer=to_answer, closing=closing)
        if normalized(text) != normalized(expected):
            raise IrregularError(f"tools in {len(talk)} messages do not fit their parts")


def around(found: ToolTurns, talk: Messages, *, to_answer: str, closing: str) -> str:
    """A conversation after its opening: one question, then calls and their results."""
    text = ""
    for place, message in enumerate(talk):
        following = talk[place + 1]["role"] if place + 1 < len(talk) else ""
        if message["role"] == "user":
            text += message["content"] + (to_answer if following else closing)
        elif message["role"] == "tool":
            after = {"tool": found.between_results, "": found.closing}
            content = message["content"]
            text += quoted(content) if found.result_is_json else content
            text += after.get(following, found.to_answer)
        else:
            if message["content"] and found.after_content is not None:
                text += message["content"] + found.after_content
            calls = [
                call["function"]["name"]
                + found.to_arguments
                + json.dumps(call["function"]["arguments"])
                for call in message["tool_calls"]
            ]
            text += found.call + (found.between_calls or "").join(calls) + found.to_result
    return text


def cut(text: str, *words: str) -> list[str]:
    """The texts before, between and after `words`. Raises IrregularError if one is missing."""
    parts = []
    for word in words:
        part, found, text = text.partition(word)
        if not found or word in text:
            raise IrregularError("it does not give every message once, in order")
        parts.append(part)
    return [*parts, text]
