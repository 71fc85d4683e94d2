"""Every layout that trainers read becomes the same items."""

from __future__ import annotations

import json

import pytest

from exporter.core.errors import InputError
from runtime.evaluation.data.open_data import DataRequest, open_data

USER = {"role": "user", "content": "Where is Bern?"}
ANSWER = {"role": "assistant", "content": "In Switzerland."}
WRONG = {"role": "assistant", "content": "In Peru."}
HUMAN = {"from": "human", "value": "Where is Bern?"}
GPT = {"from": "gpt", "value": "In Switzerland."}


@pytest.fixture
def opened(tmp_path):
    """Open rows that are written as JSONL."""

    def run(*rows, **settings):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return open_data(DataRequest(str(path), **settings))

    return run


SAME = {
    "messages": {"messages": [USER, ANSWER]},
    "parts": {"messages": [USER, {**ANSWER, "content": [{"text": "In Switzerland."}]}]},
    "nulls of Parquet": {"messages": [{**USER, "name": None, "tool_calls": None}, ANSWER]},
    "JSON in a text": {"messages": json.dumps([USER, ANSWER])},
    "ShareGPT": {"conversations": [HUMAN, GPT]},
    "TRL": {"prompt": "Where is Bern?", "completion": " In Switzerland."},
    "TRL messages": {"prompt": [USER], "completion": [ANSWER]},
    "Alpaca": {"instruction": "Where is Bern?", "input": "", "output": "In Switzerland."},
    "dolly": {"instruction": "Where is Bern?", "context": "", "response": "In Switzerland."},
    "question": {"question": "Where is Bern?", "answer": "In Switzerland."},
    "capitals": {"Question": "Where is Bern?", "Answer": "In Switzerland."},
    "query": {"query": "Where is Bern?", "response": "In Switzerland."},
    "input": {"input": "Where is Bern?", "output": "In Switzerland."},
    "source": {"source": "Where is Bern?", "target": "In Switzerland."},
    "XSum": {"document": "Where is Bern?", "summary": "In Switzerland."},
    "CNN": {"article": "Where is Bern?", "highlights": "In Switzerland."},
    "DPO": {"prompt": "Where is Bern?", "chosen": "In Switzerland.", "rejected": "In Peru."},
    "DPO implicit": {"chosen": [USER, ANSWER], "rejected": [USER, WRONG]},
    "UltraFeedback": {
        "prompt": "Where is Bern?", "chosen": [USER, ANSWER], "rejected": [USER, WRONG],
        "messages": [USER, ANSWER],
    },
    "DPO answers": {"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG]},
    "LLaMA-Factory": {
        "conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "In Peru."},
    },
    "hh-rlhf": {
        "chosen": "\n\nHuman: Where is Bern?\n\nAssistant: In Switzerland.",
        "rejected": "\n\nHuman: Where is Bern?\n\nAssistant: In Peru.",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_a_layout_is_recognized(opened, name):
    data = opened(SAME[name])

    (item,) = data
    assert item.messages == ({"role": "user", "content": "Where is Bern?"},)
    assert item.references == ("In Switzerland.",)
    preferred = "rejected" in SAME[name]
    assert (data.facts.task, item.rejected) == (
        ("preferences", "In Peru.") if preferred else ("answers", "")
    )
    assert "`" in data.facts.layout


def test_alpaca_joins_its_input_and_its_history(opened):
    (item,) = opened({
        "instruction": "Translate.", "input": "Bonjour", "output": "Hello",
        "system": "Be brief.", "history": [["Hi", "Hello."]],
    })  # fmt: skip

    assert [(turn["role"], turn["content"]) for turn in item.messages] == [
        ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."),
        ("user", "Translate.\n\nBonjour"),
    ]  # fmt: skip


def test_squad_has_several_references_after_its_context(opened):
    data = opened({
        "id": "56be", "title": "Bern", "context": "Bern is in Switzerland.", "question": "Where?",
        "answers": {"text": ["Switzerland", "in Switzerland", "Switzerland"], "answer_start": [1]},
    })  # fmt: skip

    (item,) = data
    assert item.id == "56be"
    assert item.question == "Bern is in Switzerland.\n\nWhere?"
    assert item.references == ("Switzerland", "in Switzerland")
    assert item.columns == {"title": "Bern"}


@pytest.mark.parametrize(
    "row",
    [
        {"choices": ["Peru", "Switzerland"], "answer": 1},
        {"options": ["Peru", "Switzerland"], "answer": "B"},
        {"options": ["Peru", "Switzerland"], "answer": "Switzerland"},
        {"choices": {"text": ["Peru", "Switzerland"], "label": ["A", "B"]}, "answerKey": "B"},
    ],
)
def test_multiple_choice_lists_its_options_and_answers_with_a_letter(opened, row):
    data = opened({"question": "Bern?", **row})

    assert data[0].question == "Bern?\n\nA. Peru\nB. Switzerland"
    assert data[0].references == ("B",)
    assert any("choices" in note for note in data.facts.notes)


def test_an_answer_that_is_no_choice_is_a_bad_row(opened):
    row = {"question": "q", "choices": ["a", "b"]}
    with pytest.raises(InputError, match="line 2: its `answer` is '2', which is none of its 2"):
        opened({**row, "answer": 1}, {**row, "answer": 2})


def test_boolq_has_a_passage_and_true_and_false(opened):
    rows = [{"question": "q", "passage": "p", "answer": n % 2 == 0} for n in range(6)]
    data = opened(*rows)

    assert data[0].question == "p\n\nq"
    assert data.labels == ("false", "true")


def test_triviaqa_has_aliases(opened):
    (item,) = opened({"question": "q", "answer": {"value": "Bern", "aliases": ["Berne"], "x": 1}})

    assert item.references == ("Bern", "Berne")


def test_the_turns_before_the_last_answer_are_the_context(opened):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    data = opened({
        "tools": [{"name": "f"}],
        "messages": [
            {"role": "developer", "content": "Be brief."}, USER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "46.9", "tool_call_id": "1"}, ANSWER,
            {"role": "user", "content": "Thanks"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
    })  # fmt: skip

    (item,) = data
    assert [turn["role"] for turn in item.messages] == ["system", "user", "assistant", "tool"]
    assert item.messages[2]["tool_calls"] == [call]
    assert item.references == ("In Switzerland.",)
    assert any("turns after" in note for note in data.facts.notes)
    assert any("tools" in note for note in data.facts.notes)


def test_sharegpt_has_names_for_all_roles(opened):
    (item,) = opened({
        "system": "Be brief.",
        "conversations": [
            HUMAN, {"from": "function_call", "value": "{}"}, {"from": "observation", "value": "1"},
            GPT,
        ],
    })  # fmt: skip

    assert [turn["role"] for turn in item.messages] == ["system", "user", "assistant", "tool"]


def test_a_system_message_is_put_before_conversations_without_one(opened):
    with_own = {"messages": [{"role": "system", "content": "own"}, USER, ANSWER]}
    first, second = opened({"messages": [USER, ANSWER]}, with_own, system="given")

    assert [item.messages[0]["content"] for item in (first, second)] == ["given", "own"]


def test_labels_are_those_of_the_column(opened):
    data = opened(*({"text": f"t{n}", "label": f"label {n}"} for n in range(30)))

    assert data.facts.task == "labels"
    assert len(data.labels) == 30
    assert data[3].references == ("label 3",)
    assert data[3].messages == ({"role": "user", "content": "t3"},)


def test_two_texts_have_one_label(opened):
    data = opened({"premise": "a", "hypothesis": "b", "label": 1})

    assert data[0].question == "a\n\nb"
    assert data[0].references == ("1",)


def test_numbers_of_labels_take_their_names_from_the_readme(opened, tmp_path):
    (tmp_path / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n"
        "  - name: label\n    dtype:\n      class_label:\n        names:\n"
        "          '0': negative\n          '1': positive\n---\n# Data\n"
    )
    data = opened({"text": "a", "label": 1}, {"text": "b", "label": 0})

    assert [item.references for item in data] == [("positive",), ("negative",)]
    assert data.labels == ("negative", "positive")
    with pytest.raises(InputError, match="line 1: its `label` is 2, and there are 2 labels"):
        opened({"text": "a", "label": 2}, {"text": "a", "label": 1})
    with pytest.raises(InputError, match="line 2: its `label` is -1: the row has no label"):
        opened({"text": "a", "label": 1}, {"text": "a", "label": -1})


def test_a_row_with_several_labels_is_bad(opened):
    rows = {"text": "a", "label": ["x"]}, {"text": "a", "label": ["x", "y"]}
    with pytest.raises(InputError, match="line 2: its `label` holds 2 labels"):
        opened(*rows)


def test_setfit_names_its_labels_in_a_column(opened):
    data = opened({"text": "a", "label": 0, "label_text": "joy"})

    assert data.labels == ("joy",)


def test_a_completion_that_was_rated_bad_is_a_bad_row(opened):
    row = {"prompt": "q", "completion": "a"}
    with pytest.raises(InputError, match="line 2: its `label` is false"):
        opened({**row, "label": True}, {**row, "label": False})


def test_few_short_references_that_recur_are_labels(opened):
    rows = [{"question": f"q{n}", "answer": "yes" if n % 2 else "no"} for n in range(6)]

    assert opened(*rows).labels == ("no", "yes")
    assert opened(*rows[:5]).facts.task == "answers"
    long = [{**row, "answer": f"{row['answer']} it is so in fact"} for row in rows]
    assert opened(*long).facts.task == "answers"
    many = [{"question": "q", "answer": str(n // 3)} for n in range(63)]
    assert opened(*many).facts.task == "answers"
    assert opened(*many[:60]).facts.task == "labels"


def test_several_references_of_a_row_are_no_labels(opened):
    rows = [{"question": f"q{n}", "answers": [f"a{n % 2}", "b"]} for n in range(20)]

    assert opened(*rows).facts.task == "answers"


def test_a_thousand_labels_and_more_are_free_text(opened):
    rows = [{"text": "t", "label": f"label {n}"} for n in range(1001)]

    assert len(opened(*rows[:1000]).labels) == 1000
    assert opened(*rows).facts.task == "answers"


def test_references_that_are_json_make_the_task_json(opened):
    rows = [{"question": f"q{n}", "answer": json.dumps({"n": n})} for n in range(40)]
    rows[0]["answer"] = {"n": 0}  # not written as a text

    assert opened(*rows).facts.task == "json"
    assert opened(*rows)[0].references == ('{"n": 0}',)
    rows[1]["answer"] = "none"
    assert opened(*rows).facts.task == "json"
    rows[2]["answer"] = rows[3]["answer"] = "none"
    assert opened(*rows).facts.task == "answers"


def test_texts_alone_have_no_question(opened):
    data = opened({"text": " Some prose.\n", "url": "u"})

    assert (data.facts.task, data[0].messages) == ("texts", ())
    assert data[0].references == (" Some prose.\n",)


def test_other_columns_are_kept_as_texts(opened):
    (item,) = opened(
        {"question": "q", "answer": "a", "lang": "de", "hops": 2, "meta": {}, "long": "x" * 999}
    )

    assert item.columns == {"lang": "de", "hops": "2"}


AMBIGUOUS = {
    "answer": {"question": "q", "answer": "a", "response": "b"},
    "prompt": {"prompt": "q", "question": "p", "answer": "a"},
    "label": {"text": "t", "label": 1, "category": "c"},
    "label or answer": {"text": "t", "label": 1, "answer": "c"},
}


@pytest.mark.parametrize("role", AMBIGUOUS)
def test_several_columns_for_one_role_are_an_error(opened, role):
    with pytest.raises(InputError, match=f"several columns could be the {role}: ") as error:
        opened(AMBIGUOUS[role])

    assert f"--column {role.partition(' ')[0]}=" in error.value.hint


def test_columns_are_chosen_by_role(opened):
    row = {"question": "q", "answer": "a", "response": "b", "gold": "c", "key": 7, "rules": "s"}
    chosen = {"answer": "gold", "id": "key", "system": "rules"}
    (item,) = opened(row, columns=chosen)
    (other,) = opened(row, columns={"prompt": "response", "answer": "answer"})
    (pair,) = opened(row, columns={"answer": "gold", "rejected": "response"})
    (label,) = opened(row, columns={"text": "question", "label": "gold"})
    (text,) = opened(row, columns={"text": "gold"})

    assert (item.id, item.references, item.messages[0]["content"]) == ("7", ("c",), "s")
    assert (other.question, other.references) == ("b", ("a",))
    assert (pair.question, pair.references, pair.rejected) == ("q", ("c",), "b")
    assert (label.question, label.references) == ("q", ("c",))
    assert (text.messages, text.references) == ((), ("c",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"answer": "nothing"}}, "no column 'nothing'"),
        ({"columns": {"reply": "answer"}}, "no role 'reply'"),
        ({"layout": "alpaka"}, "no layout 'alpaka'"),
        ({"layout": "alpaca"}, "cannot be read as alpaca: their columns are question, answer"),
    ],
)
def test_a_wrong_choice_is_an_error(opened, settings, message):
    with pytest.raises(InputError, match=message):
        opened({"question": "q", "answer": "a"}, **settings)


def test_a_layout_can_be_forced(opened):
    row = {"text": "t", "label": "x"}

    assert opened(row, layout="text").facts.task == "texts"


def test_rows_of_another_layout_than_most_are_bad(opened):
    rows = [{"text": "t"}, {"question": "q", "answer": "a"}, {"question": "q", "answer": "a"}]
    with pytest.raises(InputError, match="line 1: it has no `question`"):
        opened(*rows)
