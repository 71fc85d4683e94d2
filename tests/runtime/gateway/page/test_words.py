"""The page's words in Chinese: every text has one, with the same places for values."""

from __future__ import annotations

import json
import re

from runtime.gateway.page_files import FOLDER

TEXT = r'"((?:[^"\\]|\\.)+)"'
PAIR = re.compile(rf"^  {TEXT}: {TEXT},$", re.MULTILINE)
PLACE = re.compile(r"\{\w+\}")
SPOKEN = re.compile(
    rf"""\b(?:t|tool|button|copyButton|counted)\( (?:[^()"]*,\s)? (?:[^()"]*\?\s)? {TEXT}
    (?: (?:\s:\s|,\s) {TEXT} )?""",
    re.VERBOSE,
)
ATTRIBUTES = re.compile(r'\b(?:aria-label|placeholder|title|content)="([^"]+)"')
BETWEEN = re.compile(r">\s*([^<>{}]*[a-z][^<>{}]*?)\s*<")
KEPT = {"decant", "?", "utf-8", "light dark"}
"""Texts of index.html that have no translation."""


def table() -> dict[str, str]:
    pairs = PAIR.findall((FOLDER / "words_zh.js").read_text())
    return {json.loads(f'"{one}"'): json.loads(f'"{other}"') for one, other in pairs}


def in_scripts() -> set[str]:
    """The texts that scripts hand to the functions which translate them."""
    found = set()
    for script in FOLDER.glob("*.js"):
        if script.name.startswith("words"):
            continue
        for match in SPOKEN.finditer(script.read_text()):
            found |= {json.loads(f'"{text}"') for text in match.groups() if text}
    return found


def in_index() -> set[str]:
    index = (FOLDER / "index.html").read_text()
    body = index[index.index("<body>") :]
    texts = {*BETWEEN.findall(body), *ATTRIBUTES.findall(body)}
    return {text for text in texts if text not in KEPT}


def test_every_text_has_its_chinese():
    words = table()

    assert len(in_scripts()) > 80
    assert len(in_index()) > 30
    assert sorted((in_scripts() | in_index()) - set(words) - NAMES) == []


NAMES = {"data-proceed", "data-again"}
"""Attributes, which stand where texts do."""


def test_no_translation_is_left_over():
    """A text that has changed leaves its old translation behind."""
    everything = "".join(
        file.read_text()
        for file in FOLDER.iterdir()
        if file.suffix in (".js", ".html") and not file.name.startswith("words")
    )
    left = [
        text for text in table() if json.dumps(text, ensure_ascii=False)[1:-1] not in everything
    ]

    assert left == []


def test_values_have_the_same_places():
    for english, chinese in table().items():
        assert sorted(PLACE.findall(english)) == sorted(PLACE.findall(chinese)), english
        assert re.search(r"[\u4e00-\u9fff]", chinese) or english.casefold() == chinese.casefold()
