"""Finds the texts that a chat template puts around each message, by rendering marker words.

A template is a program; most of them only put texts before, between and after messages. Those texts
are cut out of a few rendered conversations, and the parts must then reproduce other conversations;
a template that does more fails this comparison.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from exporter.inputs.chat_template import IrregularError, Messages, Template
from exporter.inputs.template_rendering import Rendering
from exporter.inputs.template_tools import ToolTurns, cut, find_tools

SYSTEM, USERS, ANSWERS = "\ue001s\ue002", ("\ue001u\ue002", "\ue001v\ue002", "\ue001w\ue002"), (
    "\ue001a\ue002", "\ue001b\ue002",
)  # fmt: skip
"""Marker words in Unicode's private use area, which no template contains."""
DAY = datetime(2024, 7, 26)  # noqa: DTZ001 - as in Llama's templates without a clock
CLOCK = "strftime_now"


@dataclass(frozen=True, slots=True)
class Turns:
    """The texts around messages."""

    opening: str
    """Text before the first question, without a system message."""
    to_answer: str
    """Text between a question and its answer."""
    to_question: str
    """Text between an answer and the next question."""
    closing: str
    """Text after the last question, where the answer begins."""
    answer_end: str = ""
    """Text that ends an answer: the beginning of `to_question`."""
    system: tuple[str, str] | None = None
    """Texts around a system message, up to the question; None if the template ignores one."""
    system_is_last: bool = False
    """Whether the system message stands before the last question, not in place of `opening`."""
    default_system: str = ""
    """The template's default system message."""
    closing_off: str | None = None
    """`closing` with thinking turned off; None without such a switch, or if thinking is off by
    default, since Ollama by itself turns thinking on in every model that can think.
    """
    thoughts: tuple[str, str] = ("", "")
    """Texts around the thoughts of a final answer, before its text; with `closing_off`."""
    tools: ToolTurns | None = None
    """Texts around tools, calls and results; None if the template does more than that."""
    has_date: bool = False
    """Whether the texts contain a date from the clock."""

    def render(self, messages: Messages) -> str:
        """Render a conversation that ends with a question, up to the start of the answer."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        contents = [message["content"] for message in messages[1 if system else 0 :]]
        around = self.around(system)
        text = self.opening if self.system_is_last or not system else around
        for place, content in enumerate(contents):
            is_last, is_question = place == len(contents) - 1, place % 2 == 0
            if is_last and self.system_is_last:
                text += around
            after = self.to_answer if is_question else self.to_question
            text += content + (self.closing if is_last else after)
        return text

    def around(self, system: str) -> str:
        """The system message with the texts around it."""
        if not system or self.system is None:
            return ""
        return self.system[0] + system + self.system[1]

    @property
    def texts(self) -> tuple[str, ...]:
        return (
            self.opening, self.to_answer, self.to_question, self.closing, self.closing_off or "",
            *self.thoughts, *(self.system or ()), *(self.tools.texts if self.tools else ()),
        )  # fmt: skip


def find_turns(template: str, tokens: dict[str, str], *, adds_bos: bool) -> Turns:
    """The texts that `template` puts around messages.

    tokens: its special tokens, such as bos_token; adds_bos: whether the engine adds BOS by itself.
    Raises IrregularError, with the reason, for a template that needs more.
    """
    render, has_date = rendering(template, tokens, tokens.get("bos_token", "") if adds_bos else "")
    turns = with_system(cut_turns(render), render)
    check_turns(turns, render)
    with suppress(IrregularError):  # a plain conversation works without it
        turns = with_thinking(turns, render)
    with suppress(IrregularError):
        turns = with_tools(turns, render)
    return replace(turns, has_date=has_date)


def rendering(template: str, tokens: dict[str, str], bos: str) -> tuple[Rendering, bool]:
    """The settings that render a plain question without an error, and whether they use a date.

    The first try has no clock, so that a template's default date is used, and has `tools` defined,
    as in transformers. Raises IrregularError if none works.
    """
    question, first = talk_of("", USERS[0]), None
    clocks = (None, lambda: DAY) if CLOCK in template else (None,)
    for clock, has_tools in itertools.product(clocks, (True, False)):
        render = Rendering(Template(template, tokens, clock), bos, has_tools)
        try:
            render(question)
        except IrregularError as error:
            first = first or error
        else:
            return render, clock is not None
    assert first is not None
    raise first


def cut_turns(render: Rendering) -> Turns:
    """Cut the texts out of conversations made of marker words. Raises IrregularError."""
    words = [*itertools.chain(*zip(USERS, (*ANSWERS, ""), strict=True))][:-1]
    opening, *between, closing = cut(render(talk_of("", *words)), *words)
    same(between[0], between[2], "what follows a question")
    same(between[1], between[3], "what follows an answer")
    alone = cut(render(talk_of("", words[0])), words[0])
    same(opening, alone[0], "the first question")
    same(closing, alone[1], "the prompt for an answer")
    answered = render(talk_of("", *words[:2]), generation=False)
    end = beginning_of_both(answered.rpartition(words[1])[2], between[1])
    return Turns(opening, between[0], between[1], closing, end)


def with_system(turns: Turns, render: Rendering) -> Turns:
    """Add the texts around a system message, and the default one. Raises IrregularError."""
    question = USERS[0]
    try:
        text = render(talk_of(SYSTEM, question))
    except IrregularError:
        return turns
    if SYSTEM not in text:
        return turns
    before, after, _ = cut(text, SYSTEM, question)
    later = render(talk_of(SYSTEM, question, ANSWERS[0], USERS[1]))
    if later.find(SYSTEM) > later.find(question):
        if not before.startswith(turns.opening):
            raise IrregularError("the system message depends on what stands around it")
        return replace(turns, system=(before[len(turns.opening) :], after), system_is_last=True)
    found = replace(turns, system=(before, after))
    if len(turns.opening) > len(before + after) and (
        turns.opening.startswith(before) and turns.opening.endswith(after)
    ):
        default = turns.opening.removeprefix(before).removesuffix(after)
        return replace(found, default_system=default)
    return found


def with_thinking(turns: Turns, render: Rendering) -> Turns:
    """Add the text that turns thinking off, if it only changes the beginning of an answer.

    Raises IrregularError otherwise.
    """
    talk = talk_of("", USERS[0], ANSWERS[0], USERS[1])
    words = [message["content"] for message in talk]
    plain, on, off = (cut(render(talk, thinks=thinks), *words) for thinks in (None, True, False))
    if not plain == on or off[:-1] != plain[:-1] or off[-1] == plain[-1]:
        raise IrregularError("thinking is not a switch that is on by default")
    thought = {"role": "assistant", "content": ANSWERS[0], "reasoning_content": SYSTEM}
    text = render([talk[0], thought], generation=False)
    _, before, after, _ = cut(text, USERS[0], SYSTEM, ANSWERS[0])
    if not before.startswith(turns.to_answer):
        raise IrregularError("thoughts depend on what stands around them")
    around = before[len(turns.to_answer) :], after
    if not all(part.strip() for part in around):
        raise IrregularError("thoughts have no marks around them")
    return replace(turns, closing_off=off[-1], thoughts=around)


def with_tools(turns: Turns, render: Rendering) -> Turns:
    """Add the texts around tools. Raises IrregularError for a template that does more."""
    if turns.system_is_last:
        raise IrregularError("the system message comes before the last question")
    found = find_tools(
        render,
        to_answer=turns.to_answer,
        closing=turns.closing,
        has_system=turns.system is not None,
    )
    return replace(turns, tools=found)


def check_turns(turns: Turns, render: Rendering) -> None:
    """Compare parts and template on several kinds of conversation. Raises IrregularError."""
    texts = ("Hi", "What is 2 + 2?\n\nAnswer in one word.", "<b>Ünï</b> {{ x }} ✓", "Bye")
    answers = ("Hello!", "Four.", "No idea, really.", "")
    for system, count in itertools.product(("", "Be brief.\nBe kind."), (1, 2, 4)):
        if system and not turns.system:
            continue
        contents = [text for pair in zip(texts, answers, strict=True) for text in pair][
            : 2 * count - 1
        ]
        talk = talk_of(system, *contents)
        if turns.render(talk) != render(talk):
            raise IrregularError(f"a conversation of {len(talk)} messages does not fit its parts")


def talk_of(system: str, *texts: str) -> list[dict[str, str]]:
    """A conversation: the system's text, then questions and answers in turn."""
    contents = [(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]
    return [
        {"role": role, "content": text}
        for role, text in ([("system", system)] if system else []) + contents
    ]


def beginning_of_both(one: str, other: str) -> str:
    count = next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    return one[:count]


def same(one: str, other: str, what: str) -> None:
    if one != other:
        raise IrregularError(f"{what} depends on what stands around it")
