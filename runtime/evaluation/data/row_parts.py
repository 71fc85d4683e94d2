"""The parts of an item, read from a row by its layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from runtime.evaluation.data.conversation import (
    Turn,
    is_conversation,
    message,
    read_turns,
    split_answer,
    with_system,
)
from runtime.evaluation.data.file_rows import Fields, RowError
from runtime.evaluation.data.layouts import Layout
from runtime.evaluation.data.reference_texts import (
    as_text,
    optional_text,
    reference_texts,
    required_text,
)

SYSTEM = ("system", "system_prompt")
TRANSCRIPT = re.compile(r"\n\n(Human|Assistant): ?")
"""Turns in Anthropic's hh-rlhf, which has conversations as one text."""
BEFORE = "\n\nHuman:"
CONTEXTS = ("context", "passage")
OPTIONS = ("choices", "options")
LONG_NUMBER = 4  # digits: no option's number has as many
PAIR = 2  # LLaMA-Factory's history: an instruction and its response


@dataclass(frozen=True, slots=True)
class Parts:
    """An item's parts, before it has a number."""

    turns: Sequence[Turn]
    references: tuple[str, ...]
    rejected: str = ""
    after: int = 0
    """Number of turns after the answer, which are left out."""
    is_choice: bool = False
    """Whether options were put below the question, so that a letter is the answer."""


def read_parts(row: Fields, layout: Layout, labels: Sequence[str], system: str) -> Parts:
    """The parts of a row. `labels`: names of the numbers in the column of labels, if known.

    `system` is put before conversations without a system message. Raises RowError.
    """
    require(row, layout)
    match layout.name:
        case "messages" | "sharegpt":
            column = layout.column("turns")
            turns, answer, after = split_answer(read_turns(row[column], column), column)
            parts = Parts(turns, (answer,), after=after)
        case "preferences":
            parts = read_preference(row, layout)
        case "text-label":
            parts = read_labelled(row, layout, labels)
        case "text":
            text = required_text(row[layout.column("text")], layout.column("text"))
            return Parts((), (text,))
        case _:
            parts = read_answer(row, layout)
    own = next((text for name in SYSTEM if (text := optional_text(row.get(name)))), "")
    own = optional_text(row.get(layout.column("system"))) or own
    return Parts(
        with_system(parts.turns, own or system),
        parts.references,
        parts.rejected,
        parts.after,
        is_choice=parts.is_choice,
    )


def require(row: Fields, layout: Layout) -> None:
    """Raise RowError where a column of the layout is absent."""
    absent = [name for role, name in layout.columns if name not in row and role != "system"]
    if absent:
        names = ", ".join(list(row)[:8]) or "none"
        raise RowError(f"it has no `{absent[0]}`, as other rows have; its columns: {names}")


def read_answer(row: Fields, layout: Layout) -> Parts:
    """A question with its answers: Alpaca, prompt and completion, question and answer."""
    prompt, answer = layout.column("prompt"), layout.column("answer")
    if layout.name == "prompt-completion" and row.get("label") is False:
        raise RowError("its `label` is false: the completion is not a right answer")
    turns = asking_turns(row, layout, prompt)
    if (options := read_options(row)) and not is_conversation(row[prompt]):
        return read_choice(turns, options, row[answer], answer)
    if not is_conversation(row[answer]):
        return Parts(turns, reference_texts(row[answer], answer))
    before, text, after = split_answer([*turns, *read_turns(row[answer], answer)], answer)
    return Parts(before, (text,), after=after)


def read_options(row: Fields) -> dict[str, str]:
    """The options of a multiple-choice question by their letters, as MMLU and ARC have them."""
    value = next((row[name] for name in OPTIONS if row.get(name)), None)
    texts: object = value
    letters: object = list(ascii_uppercase)
    if isinstance(value, Mapping):
        texts, letters = value.get("text"), value.get("label")
    if not isinstance(texts, list) or not isinstance(letters, list) or len(letters) < len(texts):
        return {}
    if not all(isinstance(one, str) for one in [*texts, *letters]):
        return {}
    return dict(zip(letters, texts, strict=False))


def read_choice(
    turns: list[Turn], options: Mapping[str, str], answer: object, column: str
) -> Parts:
    """The question with its options below it, and the right one's letter. Raises RowError."""
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    asking = message("user", f"{turns[-1]['content']}\n\n{listed}")
    text = reference_texts(answer, column)[0]
    letters = list(options)
    by_text = [letter for letter, option in options.items() if option.strip() == text]
    if text in options:
        letter = text
    elif text.isdecimal() and len(text) < LONG_NUMBER and int(text) < len(letters):
        letter = letters[int(text)]
    elif len(by_text) == 1:
        letter = by_text[0]
    else:
        raise RowError(
            f"its `{column}` is {text[:40]!r}, which is none of its {len(letters)} choices"
        )
    return Parts([*turns[:-1], asking], (letter,), is_choice=True)


def asking_turns(row: Fields, layout: Layout, column: str) -> list[Turn]:
    if is_conversation(row[column]):
        return read_turns(row[column], column)
    if layout.name == "alpaca":
        texts = [as_text(row[column]), *(optional_text(row.get(n)) for n in ("input", "context"))]
        asking = "\n\n".join(text for text in texts if text)
        if not asking:
            raise RowError(f"its `{column}` is empty")
        return [*history(row.get("history")), message("user", asking)]
    name = next((one for one in CONTEXTS if one != column and row.get(one)), "")
    context = optional_text(row.get(name))
    asking = required_text(row[column], column)
    return [
        *history(row.get("history")),
        message("user", f"{context}\n\n{asking}" if context else asking),
    ]


def history(value: object) -> list[Turn]:
    """Turns before the question, in LLaMA-Factory's form; none for other values.

    Raises RowError for pairs that are no texts.
    """
    if not isinstance(value, list) or not all(isinstance(one, list | tuple) for one in value):
        return []
    turns = []
    for pair in value:
        if len(pair) != PAIR or not all(isinstance(one, str) for one in pair):
            raise RowError("its `history` is not made of pairs of texts")
        turns += [message("user", pair[0]), message("assistant", pair[1])]
    return turns


def read_labelled(row: Fields, layout: Layout, names: Sequence[str]) -> Parts:
    """A text with its label. Raises RowError."""
    column, text, second = (layout.column(role) for role in ("label", "text", "second"))
    asking = required_text(row[text], text)
    if second:
        asking = f"{asking}\n\n{required_text(row[second], second)}"
    return Parts([message("user", asking)], (label_name(row[column], column, names),))


def label_name(value: object, column: str, names: Sequence[str]) -> str:
    """The label's name; for a number, the name in `names`. Raises RowError."""
    if isinstance(value, list):
        if len(value) != 1:
            raise RowError(f"its `{column}` holds {len(value)} labels, and one is measured")
        value = value[0]
    if isinstance(value, Mapping):
        raise RowError(f"its `{column}` is an object, not a label")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = reference_texts(value, column)[0]
    number = int(text) if re.fullmatch(r"-?\d{1,9}", text) else None
    if number is not None and number < 0:
        raise RowError(f"its `{column}` is {number}: the row has no label")
    if number is None or not names:
        return text
    if number >= len(names):
        raise RowError(f"its `{column}` is {number}, and there are {len(names)} labels")
    return names[number]


def read_preference(row: Fields, layout: Layout) -> Parts:
    """A question with a chosen and a rejected answer. Raises RowError."""
    prompt, better, worse = (layout.column(role) for role in ("prompt", "answer", "rejected"))
    before = asking_turns(row, layout, prompt) if prompt else []
    chosen = split_preferred(row[better], better, before)
    rejected = split_preferred(row[worse], worse, before)
    if chosen.turns != rejected.turns:
        raise RowError(f"its `{better}` and `{worse}` answer different conversations")
    if chosen.references == rejected.references:
        raise RowError(f"its `{better}` and `{worse}` are the same")
    return Parts(chosen.turns, chosen.references, rejected.references[0], chosen.after)


def split_preferred(value: object, column: str, before: list[Turn]) -> Parts:
    """One of the two answers, with the conversation before it. Raises RowError."""
    if isinstance(value, str) and value.startswith(BEFORE):
        turns = transcript(value)
    elif is_conversation(value) or isinstance(value, Mapping):
        turns = read_turns(value, column)
    else:
        if not before:
            raise RowError(f"its `{column}` is an answer without a question")
        return Parts(before, reference_texts(value, column)[:1])
    if turns and turns[0]["role"] == "assistant":
        turns = [*before, *turns]
    elif not any(turn["role"] == "system" for turn in turns):
        turns = [*(turn for turn in before if turn["role"] == "system"), *turns]
    asking, answer, after = split_answer(turns, column)
    return Parts(asking, (answer,), after=after)


def transcript(text: str) -> list[Turn]:
    """The turns of a conversation that is one text."""
    pieces = TRANSCRIPT.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        message(roles[role], content.strip())
        for role, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]
