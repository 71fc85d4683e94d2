"""Makes llama-server render a model's chat template as transformers does.

llama-server defines variables that transformers leaves undefined (thinking is on, today's date,
earlier thoughts are kept), and leaves some undefined that transformers sets to None. A fine-tune
was trained on transformers' rendering. So llama-server gets the template with a few lines in front
that undo this, and null as the default of those switches; a request can still set them.
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
"""Variables that llama-server defines by default and transformers does not."""
KEPT_THOUGHTS = (
    "preserve_thinking",
    "clear_thinking",
    "truncate_history_thinking",
    "drop_thinking",
)
"""Variables that llama-server defines if preserve_reasoning is true or false."""
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
"""A conversation that ends with an answer, to find the mark behind it."""
MARK = re.compile(r"\s*(<[^<>\s]{1,40}>|\[/?[A-Z_]{2,40}\])")
WITH_TOOLS = list(SAMPLES).index("tools")
ENGINE_KNOWS = ("bos_token", "eos_token")
"""Variables that llama-server passes to every template."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The settings with which an engine renders conversations into prompts."""

    template: str | None = None
    """The template that llama-server gets in place of the file's own."""
    thinks: bool = True
    """Whether llama-server looks for thoughts in the answers."""
    variables: tuple[tuple[str, str | None], ...] = ()
    """Defaults of the template's variables; a request may override them."""
    not_added: tuple[str, ...] = ()
    """The tokens among bos and eos that the tokenizer would add to a prompt but must not."""
    bos: str = ""
    """The BOS to put before plain texts, as the engine adds none; empty for none."""
    added_bos: str = ""
    """The BOS missing from the engine's rendered prompts, as its tokenizer adds it."""
    samples: tuple[tuple[str, RenderJob, Rendered], ...] = ()
    """Sample conversations, and transformers' rendering of them."""
    own: str = ""
    """The template of the model's file, which the engine uses if `template` is None."""
    end: str = ""
    """The mark that the template puts behind an answer, such as <|im_end|>."""

    @property
    def flags(self) -> tuple[str, ...]:
        """llama-server's flags, except the one for the template's file."""
        found = [] if self.thinks else ["--reasoning", "off"]
        if self.variables:  # after --reasoning, which sets one of them
            found += ["--chat-template-kwargs", json.dumps(dict(self.variables))]
        for name in self.not_added:
            found += ["--override-kv", f"tokenizer.ggml.add_{name}_token=bool:false"]
        return tuple(found)


AS_IT_IS = ChatFormat()
"""llama-server's default rendering of the file's template."""


def templates_of(header: GGUFFile) -> tuple[str, str]:
    """The templates for conversations without and with tools; an empty one is absent."""
    plain, tools = header.text(TEMPLATE) or "", header.text(TOOL_TEMPLATE) or ""
    return plain or tools, tools if plain else ""


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about a model that determine its chat format."""

    plain: str
    tool_use: str
    tokens: tuple[tuple[str, str], ...]
    """Special tokens by their names in templates."""
    adds_bos: bool
    adds_eos: bool
    """Whether llama.cpp adds EOS after a text; adds_bos: BOS before it."""
    puts_space: bool
    """Whether the tokenizer begins a text with a space and llama.cpp does not."""
    is_chosen: bool
    """Whether the template is not the file's own."""
    day: str = ""
    """Today's date, if the template uses it."""
    is_shared: bool = False
    """Whether the engine renders other templates, too, so that it must add nothing."""
    engine: tuple[tuple[str, str], ...] = ()
    """The engine's BOS and EOS, by their names in templates."""

    @property
    def names(self) -> frozenset[str]:
        """All words of the templates, which include their variables."""
        return frozenset(WORD.findall(self.plain + self.tool_use))


def chat_format(
    header: GGUFFile, chosen: str | None = None, *, is_shared: bool = False
) -> ChatFormat:
    """The format that renders a model's conversations.

    chosen: a template to use in place of the file's own; is_shared: whether adapters bring other
    templates.
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
    """Today's date if a template uses it, so that cached renderings expire; else empty."""
    return str(date.today()) if CLOCK in template else ""  # noqa: DTZ011 - local time, as templates


def begun(found: ChatFormat, facts: Facts, path: Path) -> ChatFormat:
    """The format with the first space that the tokenizer adds and llama.cpp does not."""
    if not (facts.puts_space and found.samples and found.samples[0][2].text):
        return found
    text = found.samples[0][2].text
    if text[0].isspace() or text.startswith(special_texts(path)):
        return found
    return replace(found, template="{{ ' ' }}" + (found.template or facts.plain))


@lru_cache(maxsize=64)
def format_of(facts: Facts) -> ChatFormat:
    """The format; cached, as rendering takes a moment."""
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
    adds = {"bos": lacks_bos, "eos": facts.adds_eos}  # no answer follows an EOS
    return replace(
        found,
        not_added=tuple(name for name, is_wrong in adds.items() if is_wrong),
        bos=bos if lacks_bos else "",
        added_bos=bos if facts.adds_bos and has_own else "",
        own=facts.plain or "",
    )


def end_of(answered: Rendered) -> str:
    """The mark behind an answer; empty if there is none."""
    _, found, behind = (answered.text or "").rpartition(ANSWER[0]["content"])
    mark = MARK.match(behind) if found else None
    return mark[1] if mark else ""


def trials() -> Iterator[RenderJob]:
    """A question without `tools`, and with thinking on and off."""
    yield RenderJob(QUESTION, has_tools=False)
    for is_on in (True, False):
        yield RenderJob(QUESTION, variables=dict.fromkeys(THINKING, is_on))


def other_tokens(facts: Facts) -> dict[str, str | None]:
    """The template's special tokens that the engine lacks or defines differently; None: unset."""
    engine = dict(facts.engine)
    wanted: dict[str, str | None] = {
        name: text for name, text in facts.tokens if name in facts.names
    }
    wanted |= {name: wanted.get(name) for name in engine if name in facts.names}
    return {name: text for name, text in wanted.items() if engine.get(name) != (text or "")}


def unset(names: frozenset[str], tokens: dict[str, str | None]) -> list[str]:
    """Variables that the engine sets and transformers leaves undefined."""
    switches = [name for name in SWITCHES if name in names]
    return switches + [name for name, text in tokens.items() if text is None]


def before(
    undefined: Sequence[str], names: frozenset[str], first: Rendered, without_tools: Rendered
) -> str:
    """The lines to put before the template; they print nothing.

    If the template fails with `tools` = None, as transformers passes it, `tools` stays undefined.
    """
    lines = [UNSET.format(name) for name in undefined]
    if "tools" in names and (first.text is not None or without_tools.text is None):
        lines.append(NO_TOOLS)
    lines = lines or [NOTHING]
    # jinja drops the newline after a block, so that the template begins at a line's start
    return "".join(lines) + "\n"


def both(plain: str, tool_use: str) -> str:
    """One template that acts as `tool_use` if there are tools, as transformers chooses."""
    if not tool_use:
        return plain
    first, second = (text.removesuffix("\n") for text in (tool_use, plain))
    # the empty text keeps jinja from stripping white space before the block
    return f"{{%- if tools %}}\n{first}{{{{ '' }}}}{{% else %}}\n{second}{{{{ '' }}}}{{% endif %}}"


def is_off(first: Rendered, on: Rendered, off: Rendered) -> bool:
    """Whether a template leaves thinking off unless a request turns it on."""
    return first.text is not None and first.text == off.text != on.text


def differences(
    samples: Sequence[tuple[str, RenderJob, Rendered]], prompts: Sequence[str | None], left_out: str
) -> Iterator[str]:
    """Describe each sample whose prompt differs from transformers'.

    prompts: the engine's, None if it refuses; left_out: the BOS that its tokenizer adds.
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
