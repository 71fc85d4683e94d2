"""What a chat template puts around each turn, found by rendering it with words to look for.

A template is a program; most of them do no more than put a text before and after each message.
Those texts are cut out of what the template makes of a few conversations, and then the parts
must give the same as the template for others; a template that does more is told apart so.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from exporter.chat_template import IrregularError, Messages, Template

SYSTEM, USERS, ANSWERS = "\ue001s\ue002", ("\ue001u\ue002", "\ue001v\ue002", "\ue001w\ue002"), (
    "\ue001a\ue002", "\ue001b\ue002",
)  # fmt: skip
"""Words that no template holds, of Unicode's private use."""


@dataclass(frozen=True, slots=True)
class Turns:
    """The texts around messages."""

    head: str
    """Before everything else."""
    user: tuple[str, str]
    assistant: tuple[str, str]
    generation: str
    """After the last turn, where the answer begins."""
    system: tuple[str, str] | None
    """None for a template that has no place for one."""
    system_in_user: bool = False
    """Whether the system's text stands inside the first user turn, in place of its prefix."""
    default_system: str = ""
    """What the template says where no system message is given."""

    def render(self, messages: Messages) -> str:
        """A conversation that ends with the user, and where its answer begins."""
        text, before = self.head, ""
        if self.default_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default_system}, *messages]
        for message in messages:
            role, content = message["role"], message["content"]
            if role == "system":
                prefix, suffix = self.system or ("", "")
                before = prefix + content + suffix if self.system else ""
                text += "" if self.system_in_user else before
            elif role == "user":
                prefix = before if self.system_in_user and before else self.user[0]
                text, before = text + prefix + content + self.user[1], ""
            else:
                text += self.assistant[0] + content + self.assistant[1]
        return text + self.generation


def find_turns(template: str, tokens: dict[str, str], *, adds_bos: bool) -> Turns:
    """The texts that `template` puts around messages.

    tokens: its special tokens, such as bos_token; adds_bos: whether the engine puts the first
    one there by itself. Raises IrregularError, saying why, for a template that needs more.
    """
    compiled, bos = Template(template, tokens), tokens.get("bos_token", "") if adds_bos else ""
    turns = cut_turns(compiled, bos)
    check_turns(turns, compiled, bos)
    return turns


def cut_turns(template: Template, bos: str) -> Turns:
    """Cut the texts out of a few conversations made of words to look for."""
    talk = talk_of("", *itertools.chain(*zip(USERS, (*ANSWERS, ""), strict=True)))
    plain = template.render(talk, generation=False)
    start, *between, end = cut(plain, *(message["content"] for message in talk))
    generation = after(template.render(talk), plain, "the prompt for an answer")
    answered = template.render(talk[:2], generation=False)
    answer_end = cut(answered, talk[0]["content"], talk[1]["content"])[2]
    user = after(between[1], answer_end, "the end of an answer"), end
    assistant = after(between[0], end, "the end of a question"), answer_end
    head = before(start, user[0], "the first question").removeprefix(bos)
    return with_system(Turns(head, user, assistant, generation, None), template, bos)


def with_system(turns: Turns, template: Template, bos: str) -> Turns:
    """Add what the template does with a system message, and with none."""
    asked = talk_of(SYSTEM, USERS[0])
    try:
        text = template.render(asked, generation=False).removeprefix(bos)
    except IrregularError:
        return turns
    if SYSTEM not in text:
        return turns
    prefix, middle, _ = cut(text, SYSTEM, USERS[0])
    if not middle.endswith(turns.user[0]):
        prefix = after(prefix, turns.head, "the system message")
        return replace(turns, system=(prefix, middle), system_in_user=True)
    suffix = before(middle, turns.user[0], "the question after the system message")
    head = turns.head
    if len(head) > len(prefix + suffix) and head.startswith(prefix) and head.endswith(suffix):
        default = head.removeprefix(prefix).removesuffix(suffix)
        return replace(turns, head="", system=(prefix, suffix), default_system=default)
    return replace(turns, system=(after(prefix, head, "the system message"), suffix))


def check_turns(turns: Turns, template: Template, bos: str) -> None:
    """Compare both over conversations of several kinds."""
    texts = ("Hi", "What is 2 + 2?\n\nAnswer in one word.", "<b>Ünï</b> {{ x }} ✓", "Bye")
    answers = ("Hello!", "Four.", "No idea, really.", "")
    for system, count in itertools.product(("", "Be brief.\nBe kind."), (1, 2, 4)):
        if system and not turns.system:
            continue
        told = [text for pair in zip(texts, answers, strict=True) for text in pair][: 2 * count - 1]
        talk = talk_of(system, *told)
        if turns.render(talk) != template.render(talk).removeprefix(bos):
            raise IrregularError(f"a conversation of {len(talk)} messages does not fit its parts")


def talk_of(system: str, *texts: str) -> list[dict[str, str]]:
    """A conversation: the system's text, then questions and answers in turn; empty ones left."""
    told = [(("user", "assistant")[n % 2], text) for n, text in enumerate(texts) if text]
    return [
        {"role": role, "content": text}
        for role, text in ([("system", system)] if system else []) + told
    ]


def cut(text: str, *words: str) -> list[str]:
    """What stands before, between and after `words`, each of which must be there once."""
    parts = []
    for word in words:
        part, found, text = text.partition(word)
        if not found or word in text:
            raise IrregularError("it does not give every message once, in order")
        parts.append(part)
    return [*parts, text]


def after(text: str, beginning: str, what: str) -> str:
    if not text.startswith(beginning):
        raise IrregularError(f"{what} depends on what stands around it")
    return text[len(beginning) :]


def before(text: str, ending: str, what: str) -> str:
    if not text.endswith(ending):
        raise IrregularError(f"{what} depends on what stands around it")
    return text[: len(text) - len(ending)]
