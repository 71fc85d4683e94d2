"""The GGUF's tokenizer, in llama.cpp's own code, against transformers' one."""

from __future__ import annotations

from typing import Any

from exporter.verify.report import Check
from exporter.verify.texts import SPECIAL_LOOKALIKES, TEXTS
from exporter.vocabulary import Vocabulary

SPACE = "\u2581"  # as sentencepiece writes it
FEW = 3  # differences that are shown
# Of the texts: upstream's two tokenizers part over rare characters in some models, which no
# export can mend; a wrong vocabulary differs nearly everywhere.
MOST_DIFFERING = 0.05


def check_tokens(ours: Vocabulary, tokenizer: Any) -> Check:
    """Texts of many kinds cut into the same ids by llama.cpp and by transformers."""
    differing: list[str] = []
    tried = spaces = 0
    for text in (*TEXTS, *SPECIAL_LOOKALIKES):
        for special in (False, True):
            expected = tokenizer(text, add_special_tokens=special)["input_ids"]
            actual = ours.encode(text, special=special)
            tried += 1
            if (
                actual != expected
                and text.startswith(" ")
                and one_more_space(actual, expected, ours)
            ):
                spaces += 1
            elif actual != expected:
                differing.append(difference(text, actual, expected, tokenizer))
    for text in SPECIAL_LOOKALIKES:
        expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        actual = ours.encode(text, parse=False)
        tried += 1
        if actual != expected:
            differing.append(f"as plain text, {difference(text, actual, expected, tokenizer)}")
    shown = tuple(differing[:FEW])
    detail = f"{tried - len(differing) - spaces} of {tried} texts cut into the same tokens"
    if len(differing) > MOST_DIFFERING * tried:
        return Check("tokenizer", (f"{detail}; {shown[0]}", *shown[1:]), detail)
    if spaces:
        shown = (*shown, "llama.cpp gives a text that begins with a space one space token more")
    return Check("tokenizer", (), detail, notes=shown)


def one_more_space(actual: list[int], expected: list[int], ours: Vocabulary) -> bool:
    """Whether the ids differ only in the space that sentencepiece puts before every text.

    transformers leaves it out where there is one already; llama.cpp does as sentencepiece.
    """
    pairs = enumerate(zip(actual, expected, strict=False))
    at = next((place for place, (a, b) in pairs if a != b), 0)
    return actual[:at] + actual[at + 1 :] == expected and ours.text(actual[at]) == SPACE


def difference(text: str, actual: list[int], expected: list[int], tokenizer: Any) -> str:
    """Where two lists of ids part."""
    at = next(
        (n for n, (a, b) in enumerate(zip(actual, expected, strict=False)) if a != b),
        min(len(actual), len(expected)),
    )
    pieces = [
        f"{ids[at : at + 4]} {tokenizer.convert_ids_to_tokens(known(ids[at : at + 4], tokenizer))}"
        for ids in (actual, expected)
    ]
    return f"{text[:40]!r} from token {at}: {pieces[0]} in the GGUF, {pieces[1]} in transformers"


def known(ids: list[int], tokenizer: Any) -> list[int]:
    return [token for token in ids if token < len(tokenizer)]
