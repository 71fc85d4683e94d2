"""Bounds the time and memory of a normalizer, a program that comes with a model's file.

It runs in decant's own processes, the server's among them. Forty steps that double a letter would
crash these processes, and a pattern that backtracks would block them.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any

Step = Mapping[str, Any]

STEPS_MAX = 64  # tokenizers have up to ten
GROWTH_MAX = 32  # times the length of the text, by all steps together
TEXT_MAX = 256  # characters that a step may put into a text at one place
LONGEST_MAX = 64  # bytes that one character may become by a charsmap; NFKC's longest have 33
GROWTH = {"ByteLevel": 4.0, "BertNormalizer": 3.0}
"""Growth by steps, whatever their settings: bytes as letters, spaces around CJK."""

CLASS = r"\[\^?(?:\\.|[^\]\[\\])+\]"
ATOM = rf"(?:\\[^\dkgpPxucCM]|\\[pP]\{{\w+\}}|\\x[0-9A-Fa-f]{{2}}|{CLASS}|[^\\\[\](){{}}*+?|^$])"
LAST = rf"{ATOM}(?:[*+?]|\{{\d{{1,2}}(?:,\d{{0,2}})?\}})?"
LINEAR = re.compile(rf"\^?{ATOM}*{LAST}(?:\|\^?{ATOM}*{LAST})*", re.DOTALL)
"""Patterns that never backtrack: no groups, and a quantifier only at the end of a branch."""
MAY_BE_EMPTY = re.compile(r"[*?]|\{0")


def problem_of(steps: Iterable[Step], *, patterns: bool = True) -> str:
    """Why a normalizer might take much time or memory; empty if it cannot.

    patterns: whether to refuse patterns that may backtrack, too; `tokenizers` itself aborts them.
    """
    growth, charsmaps, count = 1.0, 0, 0
    for step in steps:
        kind, count = step.get("type"), count + 1
        if kind == "Replace":
            content, pattern = step.get("content"), step.get("pattern")
            if not isinstance(content, str) or not isinstance(pattern, Mapping):
                return "a step Replace lacks its pattern or its content"
            if patterns and (why := pattern_problem(pattern)):
                return why
            growth *= growth_of(pattern, content)
        elif kind == "Prepend":
            content = str(step.get("prepend"))
        else:
            content = ""
            growth *= GROWTH.get(str(kind), 1.0)
        if kind == "Precompiled":
            charsmaps += 1
            if longest_of(step.get("precompiled_charsmap")) > LONGEST_MAX:
                return f"its charsmap makes more than {LONGEST_MAX} bytes of one character"
        if len(content) > TEXT_MAX:
            return f"a step puts {len(content)} characters into the text"
        if growth > GROWTH_MAX or count > STEPS_MAX or charsmaps > 1:
            return f"its steps may make a text more than {GROWTH_MAX} times as long"
    return ""


def pattern_problem(pattern: Mapping[str, Any]) -> str:
    """Why a pattern is refused, as it may backtrack for any time; empty if it is not refused."""
    regex = pattern.get("Regex")
    if isinstance(regex, str) and not LINEAR.fullmatch(regex):
        return f"the pattern {regex[:60]!r} may take any time"
    return ""


def growth_of(pattern: Mapping[str, Any], content: str) -> float:
    """How many times as long a replacement may make a text."""
    text, regex = pattern.get("String"), pattern.get("Regex")
    if isinstance(text, str) and text:
        return max(1.0, len(content) / len(text))
    is_never_empty = isinstance(regex, str) and regex and not MAY_BE_EMPTY.search(regex)
    return max(1.0, len(content)) if is_never_empty else 1.0 + len(content)


def longest_of(charsmap: object) -> int:
    """Bytes of the longest text in sentencepiece's charsmap; 0 for one that cannot be read.

    A charsmap consists of a size, a trie of that size, and texts that end in NUL.
    """
    if not isinstance(charsmap, str):
        return 0
    try:
        blob = base64.b64decode(charsmap)
        (size,) = struct.unpack_from("<I", blob)
    except (binascii.Error, ValueError, struct.error):
        return 0
    return max(map(len, blob[4 + size :].split(b"\0")))
