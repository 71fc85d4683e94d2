"""Metrics of generated answers that need no library."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from runtime.evaluation.item import Item
from runtime.evaluation.metric import Metric
from runtime.evaluation.metrics.figures import mean_metric
from runtime.evaluation.metrics.text_tokens import alphanumeric_tokens, normalized, squad_tokens
from runtime.evaluation.outcome import Outcome

REPEATED = 4  # words: shorter sequences recur in any text
REFUSAL = re.compile(
    r"""(?:
      (?:(?:i|we)(?:'m|'re|\ am|\ are)\ )?(?:very\ |so\ |really\ )?(?:sorry|afraid)
        ,?\ (?:but\ )?(?:(?:that\ )?(?:i|we)(?:'m|'re|\ am|\ are)?\ (?:can|not|un|won)|as\ an?\ )
    | (?:unfortunately,?\ |i\ apologi[sz]e,?\ (?:but\ )?)?
        (?:i|we)(?:\ can(?:not|'t|\ not)|(?:'m|\ am|\ are)\ (?:unable|not\ able)|\ won't
          |\ will\ not|\ must\ (?:decline|refuse))
    | as\ an?\ (?:ai|artificial\ intelligence|(?:large\ )?language\ model)\b
    | (?:很|非常|真的|十分)?(?:抱歉|对不起|對不起|不好意思)[,。!\s]*(?:但是?)?
        我?(?:无法|無法|不能|没办法|沒辦法)
    | (?:我|我们|我們)(?:无法|無法|不能(?!不)|没办法|沒辦法)
    | (?:作为|作為)[一个個名款]*(?:人工智能|人工智慧|ai|(?:大型?)?(?:语言|語言)模型)
    )""",
    re.VERBOSE,
)
"""Openings by which chat models usually decline, in English and Chinese."""
PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\uff0c": ",", "\uff01": "!"})


def exact_match(item: Item, outcome: Outcome) -> float | None:
    """1.0 if the normalised answer equals one of the normalised references, else 0.0."""
    if outcome.answer is None or not item.references:
        return None
    answer = normalized(outcome.answer)
    return float(any(answer == normalized(reference) for reference in item.references))


def token_f1(item: Item, outcome: Outcome) -> float | None:
    """SQuAD's F1 over words, the largest of all references.

    In Chinese, Japanese, Thai and other text without spaces, each character is a word.
    """
    if outcome.answer is None or not item.references:
        return None
    answer = squad_tokens(outcome.answer)
    return max(_f1(answer, squad_tokens(reference)) for reference in item.references)


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))


def valid_json(_item: Item, outcome: Outcome) -> float | None:
    """1.0 if the answer is a JSON value, else 0.0.

    Spaces around it are allowed; a text or a code fence around it is not, for a program that reads
    the answer would fail. NaN and Infinity are no JSON.
    """
    return None if outcome.answer is None else float(bool(_parsed(outcome.answer)))


def json_match(item: Item, outcome: Outcome) -> float | None:
    """1.0 if the answer is JSON with the value of one of the references, else 0.0.

    The order of keys and the spaces do not count. References that are no JSON are ignored.
    """
    values = [value for text in item.references for value in _parsed(text)]
    if outcome.answer is None or not values:
        return None
    given = _parsed(outcome.answer)
    return float(bool(given) and any(_is_same(given[0], value) for value in values))


def _parsed(text: str) -> list[Any]:  # any JSON value
    """The value of a JSON text; none if it is no JSON."""
    try:
        return [json.loads(text, parse_constant=_refuse, parse_int=Decimal, parse_float=Decimal)]
    except (ValueError, RecursionError, ArithmeticError):
        return []


def _refuse(name: str) -> None:
    raise ValueError(name)


def _is_same(one: object, other: object) -> bool:
    """Whether two JSON values are equal; true is not 1, but 1.0 is."""
    if isinstance(one, dict) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return type(one) is type(other) and one == other


def length(_item: Item, outcome: Outcome) -> float | None:
    """The number of characters of the answer."""
    return None if outcome.answer is None else float(len(outcome.answer))


def refusal(_item: Item, outcome: Outcome) -> float | None:
    """1.0 if the answer begins as refusals do in English or Chinese, else 0.0."""
    if outcome.answer is None:
        return None
    start = outcome.answer.lstrip(" \t\r\n*\"'“")[:200].lower().translate(PLAIN)
    return float(REFUSAL.match(" ".join(start.split())) is not None)


def repetition(_item: Item, outcome: Outcome) -> float | None:
    """The share of sequences of 4 words that occur earlier in the same answer."""
    if outcome.answer is None:
        return None
    words = alphanumeric_tokens(outcome.answer)
    sequences = list(zip(*(words[start:] for start in range(REPEATED)), strict=False))
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


ANSWER_METRICS: tuple[Metric, ...] = (
    mean_metric("exact_match", "exact match", "answer", exact_match, is_binary=True),
    mean_metric("f1", "token F1", "answer", token_f1, is_bounded=True),
    mean_metric("json_match", "JSON match", "answer", json_match, is_binary=True),
    mean_metric("valid_json", "valid JSON", "answer", valid_json, is_binary=True),
    mean_metric("length", "length", "answer", length, higher_is_better=None, unit="characters"),
    mean_metric("refusals", "refusals", "answer", refusal, higher_is_better=None, is_binary=True),
    mean_metric(
        "repetition", "repetition", "answer", repetition, higher_is_better=False, is_bounded=True
    ),
)
