"""Metrics of an answer's form: a regular expression, a JSON schema."""

from __future__ import annotations

import json

import pytest

from exporter.core.errors import InputError
from runtime.evaluation.item import Item
from runtime.evaluation.metrics.metric_choice import chosen_metrics
from runtime.evaluation.outcome import Outcome

ITEM = Item("1", 1, ({"role": "user", "content": "q"},), ("r",))
SCHEMA = {
    "type": "object", "required": ["n"], "properties": {"n": {"$ref": "#/$defs/count"}},
    "$defs": {"count": {"type": "integer", "minimum": 0}},
}  # fmt: skip


def value(name: str, answer: str) -> float:
    metric = chosen_metrics("answers", True, [name], False)[-1]
    return float(metric.combine(metric.statistics(ITEM, Outcome(answer))))


def test_a_pattern_is_searched():
    assert [value("regex=^(Yes|No)\\b", one) for one in ("Yes, so", "Maybe No")] == [1.0, 0.0]
    with pytest.raises(InputError, match="is no regular expression"):
        value("regex=(", "x")


def test_an_answer_satisfies_a_schema_or_not(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    answers = {'{"n": 3}': 1.0, '{"n": -1}': 0.0, "{}": 0.0, "no JSON": 0.0, "[" * 9999: 0.0}
    assert {one: value(f"json_schema={path}", one) for one in answers} == answers


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is no JSON schema"), ('{"type": 7}', "is no JSON schema: 7"), (None, "No such file"),
     ('{"$ref": "http://127.0.0.1:9/x.json"}', "refers to a schema that is not in it")],
)  # fmt: skip
def test_a_schema_that_cannot_be_used_is_told(text, words, tmp_path):
    path = tmp_path / "schema.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=words):
        value(f"json_schema={path}", "{}")
