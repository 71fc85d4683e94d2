"""Word-level differences between two texts."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

WORDS = re.compile(
    "[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]\\s*"
    "|[^\\s\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+\\s*|\\s+"
)
"""A word with the space behind it; in scripts without spaces, a character."""
MOST = 800
"""Words beyond which texts are not compared: the time grows with the square."""
ALIKE = 0.35
"""Share of common words below which marks confuse more than they help."""


class Piece(NamedTuple):
    """A part of the marked text."""

    kind: Literal["same", "added", "removed"]
    text: str


def marked(before: str, after: str) -> list[Piece]:
    """The words of both texts: the same in both, added in `after`, or removed from `before`.

    Texts with little in common come back unmarked.
    """
    old, new = WORDS.findall(before), WORDS.findall(after)
    whole = [Piece("same", after)]
    if before == after or not old or not new or max(len(old), len(new)) > MOST:
        return whole
    matcher = SequenceMatcher(None, [w.strip() for w in old], [w.strip() for w in new])
    if matcher.ratio() < ALIKE:
        return whole
    pieces = []
    for kind, i, i_end, j, j_end in matcher.get_opcodes():
        if kind == "equal":
            pieces.append(Piece("same", "".join(new[j:j_end])))
        if kind in ("delete", "replace"):
            pieces.append(Piece("removed", "".join(old[i:i_end])))
        if kind in ("insert", "replace"):
            pieces.append(Piece("added", "".join(new[j:j_end])))
    return pieces
