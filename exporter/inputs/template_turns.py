"""What a chat template puts around each message, found by rendering it with words to look for.

A template is a program; most of them do no more than put texts before, between and after
messages. Those are cut out of what the template makes of a few conversations, and then the parts
must give the same as the template for others; a template that does more is recognized by that.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from exporter.inputs.chat_template import IrregularError, Messages, Template
from exporter.inputs.template_tools import Tool, ToolTurns, cut, find_tools

SYSTEM, USERS, ANSWERS = "\ue001s\ue002", ("\ue001u\ue002", "\ue001v\ue002", "\ue001w\ue002"), (
    "\ue001a\ue002", "\ue001b\ue002",
)  # fmt: skip
"""Words that no template holds, of Unicode's private use."""
DAY = datetime(2024, 7, 26)  # noqa: DTZ001 - which Llama's templates have for want of a clock
CLOCK = "strftime_now"
THINKING = ("enable_thinking", "thinking")


@dataclass(frozen=True, slots=True)
class Turns:
    """The texts around messages."""

    opening: str
    """Before the first question, where there is no system message."""
    to_answer: str
    """Between a question and its answer."""
    to_question: str
    """Between an answer and the next question."""
    closing: str
    """After the last question; the answer begins behind it."""
    answer_end: str = ""
    """What ends an answer: the beginning of `to_question`."""
    system: tuple[str, str] | None = None
    """Around a system message, up to the question; None where the template has no place for one."""
    system_is_last: bool = False
    """Whether it stands before the last question, and not in place of `opening`."""
    default_system: str = ""
    """What the template says where no system message is given."""
    closing_off: str | None = None
    """`closing` where thinking is turned off; None where there is no such switch, or it is off
    unless it is asked for, which Ollama does by itself of every model that can think."""
    thoughts: tuple[str, str] = ("", "")
    """Around the thoughts of an answer that comes last, before its text; with `closing_off`."""
    tools: ToolTurns | None = None
    """What stands around tools, calls and results; None where that cannot be told in texts."""
    has_date: bool = False
    """Whether the texts hold a date that the template takes from the clock."""

    def render(self, messages: Messages) -> str:
        """A conversation that ends with a question, up to where the answer begins."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        told = [message["content"] for message in messages[1 if system else 0 :]]
        around = self.around(system)
        text = self.opening if self.system_is_last or not system else around
        for place, content in enumerate(told):
            is_last, is_question = place == len(told) - 1, place % 2 == 0
            if is_last and self.system_is_last:
                text += around
            after = self.to_answer if is_question else self.to_question
            text += content + (self.closing if is_last else after)
        return text

    def around(self, system: str) -> str:
        """The system message with what stands around it."""
        if not system or self.system is None:
            return ""
        return self.system[0] + system + self.system[1]

    @property
    def texts(self) -> tuple[str, ...]:
        return (
            self.opening, self.to_answer, self.to_question, self.closing, self.closing_off or "",
            *self.thoughts, *(self.system or ()), *(self.tools.texts if self.tools else ()),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rendering:
    """A template, and how it takes conversations without tools."""

    template: Template
    bos: str
    """What the engine puts there by itself."""
    has_tools: bool

    def __call__(
        self,
        talk: Messages,
        *,
        generation: bool = True,
        thinks: bool | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> str:
        text = self.template.render(
            talk,
            generation=generation,
            tools=tools,
            has_tools=self.has_tools or tools is not None,
            variables={} if thinks is None else dict.fromkeys(THINKING, thinks),
        )
        return text.removeprefix(self.bos)


def find_turns(template: str, tokens: dict[str, str], *, adds_bos: bool) -> Turns:
    """The texts that `template` puts around messages.

    tokens: its special tokens, such as bos_token; adds_bos: whether the engine puts the first
    one there by itself. Raises IrregularError, saying why, for a template that needs more.
    """
    render, has_date = rendering(template, tokens, tokens.get("bos_token", "") if adds_bos else "")
    turns = with_system(cut_turns(render), render)
    check_turns(turns, render)
    with suppress(IrregularError):  # a plain conversation does not need it
        turns = with_thinking(turns, render)
    with suppress(IrregularError):
        turns = with_tools(turns, render)
    return replace(turns, has_date=has_date)


def rendering(template: str, tokens: dict[str, str], bos: str) -> tuple[Rendering, bool]:
    """How a plain question is rendered without an error, and whether that takes a date.

    Without a clock first, so that a template's own default date is used; with `tools` defined
    first, as transformers has it.
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
    """Cut the texts out of conversations made of words to look for."""
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
    """Add what the template does with a system message, and with none."""
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
    """Add how thinking is turned off, where that only changes how an answer begins.

    Raises IrregularError where it is not so.
    """
    talk = talk_of("", USERS[0], ANSWERS[0], USERS[1])
    words = [message["content"] for message in talk]
    plain, on, off = (cut(render(talk, thinks=thinks), *words) for thinks in (None, True, False))
    if not plain == on or off[:-1] != plain[:-1] or off[-1] == plain[-1]:
        raise IrregularError("thinking is no switch that is on")
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
    """Add what the template does with tools. Raises IrregularError where that cannot be told."""
    if turns.system_is_last:
        raise IrregularError("the system message stands before the last question")
    found = find_tools(
        render,
        to_answer=turns.to_answer,
        closing=turns.closing,
        has_system=turns.system is not None,
    )
    return replace(turns, tools=found)


def check_turns(turns: Turns, render: Rendering) -> None:
    """Compare both over conversations of several kinds. Raises IrregularError."""
    texts = ("Hi", "What is 2 + 2?\n\nAnswer in one word.", "<b>Ünï</b> {{ x }} ✓", "Bye")
    answers = ("Hello!", "Four.", "No idea, really.", "")
    for system, count in itertools.product(("", "Be brief.\nBe kind."), (1, 2, 4)):
        if system and not turns.system:
            continue
        told = [text for pair in zip(texts, answers, strict=True) for text in pair][: 2 * count - 1]
        talk = talk_of(system, *told)
        if turns.render(talk) != render(talk):
            raise IrregularError(f"a conversation of {len(talk)} messages does not fit its parts")


def talk_of(system: str, *texts: str) -> list[dict[str, str]]:
    """A conversation: the system's text, then questions and answers in turn."""
    told = [(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]
    return [
        {"role": role, "content": text}
        for role, text in ([("system", system)] if system else []) + told
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
