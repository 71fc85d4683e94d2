"""Texts as words to compare, in all scripts.

Latin text is normalised as SQuAD's evaluation does (Rajpurkar et al. 2016). Other scripts
follow MLQA's (Lewis et al. 2020): punctuation is Unicode's, and in scripts that put no spaces
between words, each character is a word.
"""

from __future__ import annotations

import re
import string
import unicodedata

SPACELESS = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u3040-\u30ff\uff66-\uff9f"  # kana
)
"""Characters of scripts that put no spaces between words, as a regular expression has them."""
ONE_CHARACTER = re.compile(f"([{SPACELESS}])")
ARTICLES = re.compile(r"\b(?:a|an|the)\b")


class _WithoutPunctuation(dict[int, int | None]):
    def __missing__(self, code: int) -> int | None:
        character = chr(code)
        is_mark = character in string.punctuation or unicodedata.category(character)[0] == "P"
        self[code] = None if is_mark else code
        return self[code]


class _WordsApart(dict[int, str]):
    """Letters, digits and their marks stay, an emoji becomes a word, other characters a space."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)
        if unicodedata.name(character, "").startswith("VARIATION SELECTOR"):
            self[code] = ""
        elif kind == "So":
            self[code] = f" {character} "
        else:
            self[code] = character if kind[0] in "LMN" else " "
        return self[code]


_WITHOUT_PUNCTUATION = _WithoutPunctuation()
_WORDS_APART = _WordsApart()


def normalized(text: str) -> str:
    """A text in lower case without punctuation, articles and needless spaces.

    If this leaves nothing, as with the answer "A", articles stay; if still nothing is left, as
    with "+", punctuation stays, too. In SQuAD's own evaluation all such answers are equal to each
    other, and to an empty one.
    """
    lower = unicodedata.normalize("NFC", text).lower()
    plain = lower.translate(_WITHOUT_PUNCTUATION)
    for found in (ARTICLES.sub(" ", plain), plain, lower):
        if words := found.split():
            return " ".join(words)
    return ""


def squad_tokens(text: str) -> list[str]:
    """The words of the normalised text, over which F1 is computed."""
    return ONE_CHARACTER.sub(r" \1 ", normalized(text)).split()


def alphanumeric_tokens(text: str) -> list[str]:
    """The words of letters and digits in lower case; for English, those of rouge-score."""
    lower = unicodedata.normalize("NFC", text).lower().translate(_WORDS_APART)
    return ONE_CHARACTER.sub(r" \1 ", lower).split()
