"""The layouts of rows, recognized by their columns, and which column plays which role."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from exporter.core.errors import InputError
from exporter.core.near_names import did_you_mean
from runtime.evaluation.data.conversation import is_conversation, is_sharegpt
from runtime.evaluation.data.file_rows import Fields

CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns")
CHOSEN, REJECTED = ("chosen", "chosen_response"), ("rejected", "rejected_response")
PROMPTS = ("prompt", "question", "query", "instruction", "input", "problem")
ANSWERS = (
    "completion", "answer", "answers", "response", "output", "target", "solution", "reference",
    "references", "expected", "expected_output", "ideal", "answerkey",
)  # fmt: skip
LONG_PROMPTS = ("document", "article", "source", "dialogue", "text", "passage")
"""They hold the question only if no other column does."""
LONG_ANSWERS = ("summary", "highlights", "targets")
TEXTS = ("text", "sentence", "content", "review", "utterance", "tweet", "headline", "comment")
PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"),
    ("text1", "text2"), ("question", "sentence"),
)  # fmt: skip
"""Two texts that one label is about."""
LABELS = ("label", "labels", "category", "intent", "class", "sentiment", "emotion")
LABEL_TEXT = "label_text"
"""SetFit's column with the name of the number in `label`."""
ROLES = ("prompt", "answer", "label", "text", "rejected", "system", "id")
"""Roles that a user can give a column."""
NAMES = (
    "messages", "sharegpt", "preferences", "alpaca", "prompt-completion", "question-answer",
    "text-label", "text",
)  # fmt: skip
SEVERAL = "--column {role}=NAME decides"


@dataclass(frozen=True, slots=True)
class Layout:
    """How a row is read."""

    name: str
    """One of NAMES."""
    columns: tuple[tuple[str, str], ...]
    """Roles with their columns."""

    def column(self, role: str) -> str:
        """The column of a role; empty if the layout has none."""
        return dict(self.columns).get(role, "")

    @property
    def words(self) -> str:
        """The layout in words, for reports."""
        name = {role: f"`{column}`" for role, column in self.columns}
        match self.name:
            case "messages" | "sharegpt":
                turns = "messages" if self.name == "messages" else "ShareGPT conversations"
                return f"{turns} (the assistant's last turn in {name['turns']} is the answer)"
            case "preferences":
                before = f"after {name['prompt']}" if "prompt" in name else "after the turns before"
                return f"preferences ({name['answer']} is better than {name['rejected']}, {before})"
            case "alpaca":
                return f"Alpaca ({name['prompt']} and `input` ask, {name['answer']} is the answer)"
            case "text-label":
                text = name["text"] + (f" and {name['second']}" if "second" in name else "")
                return f"labels ({name['label']} is the label of {text})"
            case "text":
                return f"texts ({name['text']}, without a question)"
            case _:
                return f"{self.name} ({name['prompt']} asks, {name['answer']} is the answer)"


def find_layout(rows: Sequence[Fields], forced: str | None, chosen: Mapping[str, str]) -> Layout:
    """The layout that most of the rows have. `chosen`: columns by role, as the user chose them.

    Raises InputError for columns that are absent or ambiguous, and where no layout fits.
    """
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    check_choice(forced, chosen, names)
    found = Counter(layout for row in rows if (layout := layout_of(row, forced, chosen)))
    if found:
        best = found.most_common(1)[0][0]
        system = chosen.get("system")
        return Layout(best.name, (*best.columns, *([("system", system)] if system else [])))
    wanted = f" as {forced}" if forced else ""
    raise InputError(
        f"the rows cannot be read{wanted}: their columns are {', '.join(names[:12]) or 'none'}",
        hint="name the columns: --column prompt=NAME --column answer=NAME (or text=, label=,"
        " rejected=)",
    )


def check_choice(forced: str | None, chosen: Mapping[str, str], names: Sequence[str]) -> None:
    """Check what the user chose. Raises InputError."""
    if forced is not None and forced not in NAMES:
        raise InputError(
            f"there is no layout {forced!r}",
            hint=did_you_mean(forced, NAMES, f"one of: {', '.join(NAMES)}"),
        )
    for role, name in chosen.items():
        if role not in ROLES:
            raise InputError(
                f"there is no role {role!r} for a column",
                hint=did_you_mean(role, ROLES, f"one of: {', '.join(ROLES)}"),
            )
        if name not in names and (name or role != "id"):
            raise InputError(
                f"the data has no column {name!r} for --column {role}={name}",
                hint=did_you_mean(name, names, f"its columns: {', '.join(names[:20])}"),
            )


def layout_of(row: Fields, forced: str | None, chosen: Mapping[str, str]) -> Layout | None:
    """The layout of one row; None if no layout fits. Raises InputError for ambiguous columns."""
    names = [forced] if forced else names_for(chosen)
    return next((found for name in names if (found := fitted(name, row, chosen))), None)


def names_for(chosen: Mapping[str, str]) -> Sequence[str]:
    """The layouts with the roles that the user gave to columns, the likeliest first."""
    roles = set(chosen) - {"system", "id"}
    if "rejected" in roles:
        return ("preferences",)
    if "label" in roles:
        return ("text-label",)
    if "text" in roles:
        return ("question-answer",) if "answer" in roles else ("text-label", "text")
    if roles:
        return ("alpaca", "prompt-completion", "question-answer")
    return NAMES


def fitted(name: str, row: Fields, chosen: Mapping[str, str]) -> Layout | None:
    """The layout of this name, if the row has its columns. Raises InputError."""
    match name:
        case "messages" | "sharegpt":
            turns = next((one for one in CONVERSATIONS if is_conversation(row.get(one))), None)
            is_it = turns is not None and is_sharegpt(row[turns]) == (name == "sharegpt")
            has_pair = first(row, CHOSEN) and first(row, REJECTED)
            return layout(name, turns=turns) if turns and is_it and not has_pair else None
        case "preferences":
            return preferences(row, chosen)
        case "text-label":
            return labelled(row, chosen)
        case "text":
            text = chosen.get("text") or first(row, TEXTS)
            return layout(name, text=text) if text else None
        case "alpaca":
            is_alpaca = "prompt" not in chosen and "instruction" in row and "prompt" not in row
            answer = chosen.get("answer") or (is_alpaca and only(row, ANSWERS, "answer"))
            return (
                layout(name, prompt="instruction", answer=answer) if is_alpaca and answer else None
            )
        case _:
            found = question_answer(row, chosen)
            is_completion = found is not None and found.column("answer") == "completion"
            return found if is_completion == (name == "prompt-completion") else None


def layout(name: str, **columns: str | None) -> Layout:
    return Layout(name, tuple((role, column) for role, column in columns.items() if column))


def preferences(row: Fields, chosen: Mapping[str, str]) -> Layout | None:
    better = chosen.get("answer") or first(row, CHOSEN)
    worse = chosen.get("rejected") or first(row, REJECTED)
    if not better or not worse:
        return None
    turns = next((one for one in CONVERSATIONS if is_conversation(row.get(one))), None)
    prompt = chosen.get("prompt") or turns or only(row, PROMPTS, "prompt", but="input")
    return layout("preferences", prompt=prompt, answer=better, rejected=worse)


def labelled(row: Fields, chosen: Mapping[str, str]) -> Layout | None:
    label = chosen.get("label") or (LABEL_TEXT if row.get(LABEL_TEXT) is not None else None)
    label = label or only(row, LABELS, "label")
    if not label or (not chosen and first(row, PROMPTS) and first(row, ANSWERS)):
        return None
    text, second = chosen.get("text") or chosen.get("prompt"), None
    if not text:
        text, second = next((pair for pair in PAIRS if set(pair) <= set(row)), (None, None))
    text = text or only(row, (*TEXTS, "question", "query", "input", "premise"), "text")
    if text and "label" not in chosen and (answers := present(row, ANSWERS)):
        raise ambiguous("label", "answer", [label, *answers])
    return layout("text-label", text=text, label=label, second=second) if text else None


def question_answer(row: Fields, chosen: Mapping[str, str]) -> Layout | None:
    answer = chosen.get("answer") or only(row, ANSWERS, "answer") or only(
        row, LONG_ANSWERS, "answer"
    )  # fmt: skip
    if not answer:
        return None
    prompt = chosen.get("prompt") or chosen.get("text")
    others = {name: row[name] for name in row if name != answer}
    prompt = prompt or only(others, PROMPTS, "prompt")
    if not prompt and not chosen and present(row, LABELS):
        return None  # a text with a label, unless that is ambiguous
    prompt = prompt or only(others, LONG_PROMPTS, "prompt")
    if not prompt:
        return None
    name = "prompt-completion" if answer == "completion" else "question-answer"
    return layout(name, prompt=prompt, answer=answer)


def present(row: Fields, names: Iterable[str]) -> list[str]:
    """The columns of the row that have one of the names, in any case of letters."""
    wanted = set(names)
    return [name for name in row if name.lower() in wanted]


def first(row: Fields, names: Sequence[str]) -> str | None:
    found = present(row, names)
    return min(found, key=lambda name: names.index(name.lower()), default=None)


def only(row: Fields, names: Sequence[str], role: str, but: str = "") -> str | None:
    """The column with one of the names; None without any. Raises InputError for several."""
    found = [name for name in present(row, names) if name.lower() != but]
    if len(found) > 1:
        raise ambiguous(role, role, found)
    return found[0] if found else None


def ambiguous(role: str, kind: str, found: Sequence[str]) -> InputError:
    names = ", ".join(f"`{name}`" for name in found)
    option = f"--column {role}={found[0]}" + (
        f" or --column {kind}={found[-1]}" if kind != role else f" or {role}={found[-1]}"
    )
    return InputError(
        f"several columns could be the {kind if kind == role else f'{role} or {kind}'}: {names}",
        hint=f"choose one: {option}",
    )
