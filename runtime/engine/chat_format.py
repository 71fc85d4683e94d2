"""How llama-server renders a model's chat template as transformers does.

llama-server defines what transformers leaves undefined (thinking is on, today's date is given,
earlier thoughts are kept), and leaves undefined what transformers sets to None. A fine-tune was
trained on transformers' rendering. So llama-server is given the template with a few lines before
it, which undo that, and null as the default of those switches: what a request sets stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

from exporter.core.gguf import GGUFFile
from exporter.inputs.template_process import Rendered, RenderJob, refuse_too_much, render_all
from exporter.llamacpp.header_tokens import (
    adds_bos,
    adds_eos,
    special_texts,
    special_tokens,
    tokens_by_id,
)
from exporter.llamacpp.normalizer import FIRST, SPACE_PREFIX

TEMPLATE = "tokenizer.chat_template"
TOOL_TEMPLATE = f"{TEMPLATE}.tool_use"
SWITCHES = ("enable_thinking", "preserve_reasoning", "date_string", "datetime")
"""What llama-server defines by itself and transformers does not."""
KEPT_THOUGHTS = (
    "preserve_thinking",
    "clear_thinking",
    "truncate_history_thinking",
    "drop_thinking",
)
"""What llama-server defines where preserve_reasoning is true or false."""
THINKING = ("enable_thinking", "thinking")
"""Switches by which templates turn thinking on and off."""
CHANGED = frozenset((*SWITCHES, *KEPT_THOUGHTS, *THINKING, "tools"))
CLOCK = "strftime_now"
WORD = re.compile(r"\w+")
UNSET = "{{%- if {0} is none %}}{{%- set {0} = never_defined_by_anybody %}}{{%- endif %}}"
NOTHING = "{%- if false %}{%- endif %}"
NO_TOOLS = "{%- if tools is undefined %}{%- set tools = none %}{%- endif %}"
QUESTION = ({"role": "user", "content": "Hi there"},)
SYSTEM = ({"role": "system", "content": "Be brief."},)
ANSWER = ({"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Why?"})
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where."}},
            "required": ["city"],
        },
    },
}
SAMPLES = {
    "a question": RenderJob(QUESTION),
    "a system message": RenderJob((*SYSTEM, *QUESTION)),
    "several turns": RenderJob((*QUESTION, *ANSWER)),
    "tools": RenderJob(QUESTION, tools=(TOOL,)),
}
"""Conversations whose prompts are compared when a model is loaded."""
ENDED = RenderJob((*QUESTION, ANSWER[0]), generation=False)
"""What stands behind an answer."""
MARK = re.compile(r"\s*(<[^<>\s]{1,40}>|\[/?[A-Z_]{2,40}\])")
WITH_TOOLS = list(SAMPLES).index("tools")
ENGINE_KNOWS = ("bos_token", "eos_token")
"""What llama-server hands every template."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How an engine makes prompts of conversations."""

    template: str | None = None
    """What llama-server takes in place of the file's own template."""
    thinks: bool = True
    """Whether answers are read as those of a model that may think."""
    variables: tuple[tuple[str, str | None], ...] = ()
    """What the template finds set unless a request sets it."""
    not_added: tuple[str, ...] = ()
    """Of bos and eos, what the tokenizer would add to a prompt, and must not."""
    bos: str = ""
    """What a text that is no conversation must begin with, since the engine adds no BOS."""
    added_bos: str = ""
    """What the engine's prompts leave out at the beginning, since its tokenizer adds it."""
    samples: tuple[tuple[str, RenderJob, Rendered], ...] = ()
    """Conversations, and what transformers makes of them."""
    own: str = ""
    """The template of the model's file, which the engine takes where it is given none."""
    end: str = ""
    """The mark that the template puts behind an answer, such as <|im_end|>."""

    @property
    def flags(self) -> tuple[str, ...]:
        """Of llama-server, but for the template's file."""
        found = [] if self.thinks else ["--reasoning", "off"]
        if self.variables:  # behind --reasoning, which sets one of them
            found += ["--chat-template-kwargs", json.dumps(dict(self.variables))]
        for name in self.not_added:
            found += ["--override-kv", f"tokenizer.ggml.add_{name}_token=bool:false"]
        return tuple(found)


AS_IT_IS = ChatFormat()
"""An engine that renders as it does by itself."""


def templates_of(header: GGUFFile) -> tuple[str, str]:
    """The template for conversations, and the one for those with tools; both empty for none."""
    plain, tools = header.text(TEMPLATE) or "", header.text(TOOL_TEMPLATE) or ""
    return plain or tools, tools if plain else ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a model's chat format depends on."""

    plain: str
    tool_use: str
    tokens: tuple[tuple[str, str], ...]
    """Special tokens, by a template's names for them."""
    adds_bos: bool
    adds_eos: bool
    """What llama.cpp adds to a text."""
    puts_space: bool
    """Whether a text begins with a space that llama.cpp does not put there."""
    is_chosen: bool
    """Whether the template is not the file's own."""
    day: str = ""
    """Today, where the template tells it."""
    is_shared: bool = False
    """Whether the engine makes prompts by other templates too, so that it must add nothing."""
    engine: tuple[tuple[str, str], ...] = ()
    """The first and the last token of texts as the engine knows them, by a template's names."""

    @property
    def names(self) -> frozenset[str]:
        """The words of the templates, its variables among them."""
        return frozenset(WORD.findall(self.plain + self.tool_use))


def chat_format(
    header: GGUFFile, chosen: str | None = None, *, is_shared: bool = False
) -> ChatFormat:
    """How a model's conversations are rendered.

    chosen: a template that is used in place of the file's own; is_shared: whether adapters bring
    others.
    """
    plain, tool_use = (chosen, "") if chosen else templates_of(header)
    if not plain and not is_shared:
        return AS_IT_IS
    adds, puts_space = adds_bos(header), header.text(SPACE_PREFIX) == FIRST
    tokens, known = special_tokens(header), tokens_by_id(header)
    facts = Facts(
        plain,
        tool_use,
        tuple(tokens.items()),
        adds,
        adds_eos(header),
        puts_space,
        is_chosen=bool(chosen),
        day=today(plain + tool_use),
        is_shared=is_shared,
        engine=tuple((name, known.get(name, "")) for name in ENGINE_KNOWS),
    )
    return begun(format_of(facts), facts, header.path)


def today(template: str) -> str:
    """The day, where a template tells it: what was rendered before is of another day."""
    return str(date.today()) if CLOCK in template else ""  # noqa: DTZ011 - as templates tell it


def begun(found: ChatFormat, facts: Facts, path: Path) -> ChatFormat:
    """The format with the first space that the tokenizer puts, and llama.cpp does not."""
    if not (facts.puts_space and found.samples and found.samples[0][2].text):
        return found
    text = found.samples[0][2].text
    if text[0].isspace() or text.startswith(special_texts(path)):
        return found
    return replace(found, template="{{ ' ' }}" + (found.template or facts.plain))


@lru_cache(maxsize=64)
def format_of(facts: Facts) -> ChatFormat:
    """The format, remembered: rendering takes a moment."""
    known, names = dict(facts.tokens), facts.names
    other = other_tokens(facts)
    bos = dict(facts.engine).get("bos_token", "")
    begins_with_bos = "bos_token" in names or (bool(bos) and bos in facts.plain)
    found = ChatFormat(facts.plain if facts.is_chosen else None)
    is_changed = bool(names & CHANGED or facts.tool_use or facts.puts_space or other)
    if facts.plain:
        made = render_all(facts.plain, known, [*SAMPLES.values(), *trials(), ENDED])
        refuse_too_much(made)
        first, *tried = made[0], *made[len(SAMPLES) :]
        begins_with_bos = first.text.startswith(bos) if first.text and bos else begins_with_bos
        if facts.tool_use:
            made[WITH_TOOLS] = render_all(facts.tool_use, known, [*SAMPLES.values()])[WITH_TOOLS]
        samples = tuple(zip(SAMPLES, SAMPLES.values(), made, strict=False))
        found = replace(found, samples=samples, end=end_of(made[-1]))
        if is_changed:
            found = replace(
                found,
                template=before(unset(names, other), names, first, tried[0])
                + both(facts.plain, facts.tool_use),
                thinks=not is_off(first, *tried[1:3]),
                variables=tuple((dict.fromkeys((*SWITCHES, "documents")) | other).items()),
            )
    has_own = begins_with_bos and not facts.is_shared
    lacks_bos = facts.adds_bos and bool(bos) and not has_own
    adds = {"bos": lacks_bos, "eos": facts.adds_eos}  # no answer follows an end
    return replace(
        found,
        not_added=tuple(name for name, is_wrong in adds.items() if is_wrong),
        bos=bos if lacks_bos else "",
        added_bos=bos if facts.adds_bos and has_own else "",
        own=facts.plain or "",
    )


def end_of(answered: Rendered) -> str:
    """The mark behind an answer; empty where none stands there."""
    _, found, behind = (answered.text or "").rpartition(ANSWER[0]["content"])
    mark = MARK.match(behind) if found else None
    return mark[1] if mark else ""


def trials() -> Iterator[RenderJob]:
    """A question without `tools`, and with thinking on and off."""
    yield RenderJob(QUESTION, has_tools=False)
    for is_on in (True, False):
        yield RenderJob(QUESTION, variables=dict.fromkeys(THINKING, is_on))


def other_tokens(facts: Facts) -> dict[str, str | None]:
    """The special tokens of the template that the engine does not know so; None for none."""
    engine = dict(facts.engine)
    wanted: dict[str, str | None] = {
        name: text for name, text in facts.tokens if name in facts.names
    }
    wanted |= {name: wanted.get(name) for name in engine if name in facts.names}
    return {name: text for name, text in wanted.items() if engine.get(name) != (text or "")}


def unset(names: frozenset[str], tokens: dict[str, str | None]) -> list[str]:
    """What the engine sets and transformers leaves undefined."""
    switches = [name for name in SWITCHES if name in names]
    return switches + [name for name, text in tokens.items() if text is None]


def before(
    undefined: Sequence[str], names: frozenset[str], first: Rendered, without_tools: Rendered
) -> str:
    """The lines before the template; they print nothing.

    Where the template fails if `tools` is None, as it is in transformers, it stays undefined.
    """
    lines = [UNSET.format(name) for name in undefined]
    if "tools" in names and (first.text is not None or without_tools.text is None):
        lines.append(NO_TOOLS)
    lines = lines or [NOTHING]
    # jinja takes the newline behind a block away, so that the template begins at a line's start
    return "".join(lines) + "\n"


def both(plain: str, tool_use: str) -> str:
    """One template that is `tool_use` where there are tools, as transformers chooses."""
    if not tool_use:
        return plain
    first, second = (text.removesuffix("\n") for text in (tool_use, plain))
    # the empty text keeps jinja from taking white space away before the block
    return f"{{%- if tools %}}\n{first}{{{{ '' }}}}{{% else %}}\n{second}{{{{ '' }}}}{{% endif %}}"


def is_off(first: Rendered, on: Rendered, off: Rendered) -> bool:
    """Whether a template does not have the model think unless a request asks for it."""
    return first.text is not None and first.text == off.text != on.text


def differences(
    samples: Sequence[tuple[str, RenderJob, Rendered]], prompts: Sequence[str | None], left_out: str
) -> Iterator[str]:
    """What is said of each sample whose prompt is not transformers'.

    prompts: the engine's, None where it refuses; left_out: the BOS that its tokenizer adds.
    """
    for (name, _, wanted), prompt in zip(samples, prompts, strict=True):
        if wanted.text is None:
            if prompt is not None:
                yield f"{name}: transformers refuses it ({wanted.refusal}), llama.cpp does not"
        elif prompt is None:
            yield f"{name}: llama.cpp refuses it, transformers does not"
        elif prompt != wanted.text.removeprefix(left_out):
            yield f"{name}: " + at_first_difference(wanted.text.removeprefix(left_out), prompt)


def at_first_difference(wanted: str, got: str) -> str:
    same = next(
        (n for n, (one, other) in enumerate(zip(wanted, got, strict=False)) if one != other),
        min(len(wanted), len(got)),
    )
    around = slice(max(0, same - 10), same + 30)
    return f"transformers writes {wanted[around]!r}, llama.cpp {got[around]!r}"
