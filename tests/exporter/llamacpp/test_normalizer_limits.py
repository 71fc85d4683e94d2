"""A file's normalizer takes neither the memory nor the time of the process that reads it."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from exporter.core.errors import ModelError
from exporter.llamacpp.normalizer import CHAIN, normalizer


def written(*steps: dict[str, Any]) -> str:
    return json.dumps({"type": CHAIN, "normalizers": list(steps)})


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def charsmap(longest: int) -> dict[str, Any]:
    blob = struct.pack("<I", 4) + b"\0" * 4 + b"x" * longest + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()}


COSTLY = {
    "doubled forty times": written(*[replace("a", "aa")] * 40),
    "a long text for each letter": written(replace("a", "b" * 200)),
    "a long text between all letters": written(replace("x*", "b" * 200, "Regex")),
    "a longer text at the beginning": written({"type": "Prepend", "prepend": "b" * 1000}),
    "too many steps": written(*[{"type": "NFC"}] * 100),
    "bytes of bytes": written(*[{"type": "ByteLevel"}] * 4),
    "charsmaps": written(charsmap(33), charsmap(33)),
    "a charsmap with a long text": written(charsmap(10_000)),
    "a nested quantifier": written(replace("(a+)+$", "", "Regex")),
    "quantifiers in a row": written(replace("a*a*a*b", "", "Regex")),
    "a quantifier before more": written(replace(" +x", "", "Regex")),
    "a look behind": written(replace("(?<=a*)b", "", "Regex")),
    "a reference": written(replace(r"(a)\1+", "", "Regex")),
    "a high count": written(replace("a{1000000,}", "", "Regex")),
    "depth": '{"type":"Sequence","normalizers":[' * 100_000,
    "no content": written({"type": "Replace", "pattern": {"String": "a"}}),
}


@pytest.mark.parametrize("kind", COSTLY)
def test_a_costly_normalizer_is_refused_before_it_runs(kind):
    with pytest.raises(ModelError, match=r"decant\.tokenizer\.normalizer is"):
        normalizer(COSTLY[kind])


@pytest.mark.parametrize(
    ("step", "text", "result"),
    [
        (replace(" {2,}", " ", "Regex"), "a   b", "a b"),
        (replace(r"\s", " ", "Regex"), "a\tb", "a b"),
        (replace(r"\s+", " ", "Regex"), "a \t b", "a b"),
        (replace(r"[\n\r]+", "", "Regex"), "a\n\nb", "ab"),
        (replace("``|''", '"', "Regex"), "``a''", '"a"'),
        (replace(r"\p{P}", " ", "Regex"), "a,b", "a b"),
        (replace("^ ", "", "Regex"), " a", "a"),
        (replace(" ", "▁"), "a b", "a▁b"),
        (replace("...", "…"), "a...", "a…"),
        ({"type": "Prepend", "prepend": "▁"}, "a", "▁a"),
        ({"type": "NFKC"}, "ﬁ", "fi"),
    ],
)
def test_what_tokenizers_have_is_taken(step, text, result):
    assert normalizer(written(step))(text) == result
