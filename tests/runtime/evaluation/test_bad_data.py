"""Damaged data: the error names the row and the reason, and the other rows stay usable."""

from __future__ import annotations

import contextlib
import gzip
import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.core.errors import DecantError, InputError
from runtime.evaluation.data.open_data import DataRequest, open_data

GOOD = b'{"question": "q", "answer": "a"}\n'


@pytest.fixture
def opened(tmp_path):
    """Open a file with the given bytes."""

    def run(raw, name="rows.jsonl", **choices):
        (tmp_path / name).write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        return open_data(DataRequest(str(tmp_path / name), **choices))

    return run


ROWS = {
    '{"question": "q", "answer": "a"': "not JSON",
    "[1]": "it is a list, not an object",
    "null": "it is null, not an object",
    '{"question": "q", "answer": ""}': "its `answer` is empty",
    '{"question": "q", "answer": " "}': "its `answer` is empty",
    '{"question": "q", "answer": []}': "its `answer` is empty",
    '{"question": "q", "answer": null}': "its `answer` is null",
    '{"question": "q", "answer": NaN}': "its `answer` is NaN",
    '{"question": "", "answer": "a"}': "its `question` is empty",
    '{"question": ["q"], "answer": "a"}': "its `question` is a list, not a text",
    '{"question": {"q": 1}, "answer": "a"}': "its `question` is an object, not a text",
    '{"question": "q"}': "it has no `answer`",
    '{"question": "q", "answer": "\\ud800"}': "half of a character",
    '{"question": "q\\u0000", "answer": "a"}': "NUL",
    '{"question": "q", "answer": "a", "id": [1]}': "its `id` is neither",
    "[" * 100_000: "nested too deeply",
    '{"question": "q", "answer": ' + "9" * 5000 + "}": "not usable JSON",
}


@pytest.mark.parametrize("row", ROWS, ids=ROWS.values())
def test_a_bad_row_is_named_by_its_line_and_can_be_left_out(opened, row):
    raw = GOOD + b"\n" + row.encode() + b"\n" + GOOD
    with pytest.raises(InputError) as error:
        opened(raw)

    assert error.value.message.startswith("rows.jsonl, line 3: ")
    assert ROWS[row] in error.value.message
    assert "--skip-bad" in error.value.hint
    data = opened(raw, skip_bad=True)
    assert [item.line for item in data] == [1, 4]
    assert (data.facts.rows, data.facts.items, data.facts.skipped) == (3, 2, 1)
    (skipped,) = data.skipped
    assert (skipped.file, skipped.unit, skipped.line) == ("rows.jsonl", "line", 3)
    assert ROWS[row] in skipped.reason


MESSAGES = {
    "[]": "is empty",
    '[{"role": "user", "content": "q"}]': "no turn of the assistant",
    '[{"role": "assistant", "content": "a"}]': "no turn of the user before",
    '[{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]': "empty answers",
    '[{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{}]}]': "calls of",
    '[{"role": "user", "content": "q"}, {"role": "narrator", "content": "a"}]': "'narrator'",
    '[{"role": "user", "content": 3}, {"role": "assistant", "content": "a"}]': "neither a text",
    '[{"role": "user"}, {"role": "assistant", "content": "a"}]': "no content",
    '[{"content": "q"}]': "no `role`",
    '"text"': "no list of messages",
    '["text"]': "no object with a role",
}


@pytest.mark.lasting
@pytest.mark.parametrize("turns", MESSAGES, ids=MESSAGES.values())
def test_a_bad_conversation_says_which_turn(opened, turns):
    good = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'
    with pytest.raises(InputError, match=r"rows.jsonl, line 2: ") as error:
        opened(f'{good}\n{{"messages": {turns}}}\n')

    assert MESSAGES[turns] in error.value.message


PREFERENCES = {
    '{"prompt": "q", "chosen": "a", "rejected": "a"}': "are the same",
    '{"prompt": "", "chosen": "a", "rejected": "b"}': "its `prompt` is empty",
    '{"prompt": "q", "chosen": "a", "rejected": null}': "its `rejected` is null",
    '{"prompt": "q", "chosen": [{"role": "user", "content": "x"}, {"role": "assistant",'
    ' "content": "a"}], "rejected": "b"}': "answer different conversations",
}


@pytest.mark.parametrize("row", PREFERENCES, ids=PREFERENCES.values())
def test_a_bad_preference_says_why(opened, row):
    with pytest.raises(InputError, match="line 2") as error:
        opened(f'{{"prompt": "q", "chosen": "a", "rejected": "b"}}\n{row}\n')

    assert PREFERENCES[row] in error.value.message


def test_all_bad_rows_are_counted_and_the_first_ten_kept(opened):
    raw = GOOD + b"{}\n" * 13
    with pytest.raises(InputError, match=r"line 2: .* \(and 12 more\)"):
        opened(raw)

    data = opened(raw, skip_bad=True)
    assert (data.facts.skipped, len(data.skipped)) == (13, 10)


def test_data_without_a_good_row_is_an_error_even_so(opened):
    with pytest.raises(InputError, match=r"no row of .* can be used: rows.jsonl, line 1"):
        opened('{"question": "q", "answer": ""}\n', skip_bad=True)
    with pytest.raises(InputError, match=r"no row of .* can be read"):
        opened("text\n", skip_bad=True)


@pytest.mark.parametrize("name", ["e.jsonl", "e.json", "e.csv", "e.tsv"])
@pytest.mark.parametrize("raw", [b"", b"\n \n"])
def test_an_empty_file_is_an_error(opened, name, raw):
    with pytest.raises(InputError):
        opened(raw, name)


def test_two_rows_with_one_id_are_both_named(opened):
    raw = b"".join(b'{"id": %d, "question": "q", "answer": "a"}\n' % n for n in (1, 2, 3, 2, 1))
    with pytest.raises(
        InputError, match=r"line 4: its id '2' is .* line 2 \(and 1 more\)"
    ) as error:
        opened(raw)

    assert "--column id=" in error.value.hint
    assert [item.id for item in opened(raw, skip_bad=True)] == ["1", "2", "3"]
    assert [item.id for item in opened(raw, columns={"id": ""})] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_encodings_with_a_byte_order_mark_are_read(opened, encoding):
    text = '{"question": "où?", "answer": "Zürich 🏔"}\n'
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    data = opened((mark + text * 2).encode(encoding))

    assert [item.references for item in data] == [("Zürich 🏔",)] * 2
    assert data[0].question == "où?"


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("x.jsonl", GOOD + '{"question": "é", "answer": "a"}'.encode("latin-1")),
        ("x.csv", "question,answer\né,a\nq,a\n".encode("latin-1")),
    ],
)
def test_latin_1_is_an_error_with_the_byte(opened, name, raw):
    with pytest.raises(
        InputError, match=rf"{name}, line 2: byte .* is 0xe9, .* not UTF-8"
    ) as error:
        opened(raw, name)
    assert "iconv" in error.value.hint


def test_a_json_list_in_latin_1_is_an_error(opened):
    with pytest.raises(InputError, match="byte 16 is not UTF-8"):
        opened('[{"question": "é", "answer": "a"}]'.encode("latin-1"), "x.json")


def test_a_gzip_is_unpacked_and_a_damaged_one_an_error(opened):
    packed = gzip.compress(GOOD * 100)
    assert len(opened(packed, "x.jsonl.gz")) == 100
    assert len(opened(packed, "misnamed.jsonl")) == 100
    with pytest.raises(InputError, match="damaged gzip"):
        opened(packed[:-12], "x.jsonl.gz")


@pytest.mark.parametrize(
    ("head", "words"), [(b"PAR1", "Parquet"), (b"PK\3\4", "zip"), (b"GGUF", "model")]
)
def test_files_of_other_kinds_are_named(opened, head, words):
    with pytest.raises(InputError, match=words):
        opened(head + b"x" * 20)
    with pytest.raises(InputError, match=r"not data that decant reads"):
        opened(GOOD, "rows.txt")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("[{}, {]", "line 1: not JSON"),
        ('[\n{"question": "q",\n"answer": }]', "line 3: not JSON"),
        ("[{}", "it ends where"),
        ("[{}] x", "something follows"),
        ("[{} {}]", "'{' stands where"),
        ('{"question": ["q"], "answer": ["a"]}', "object of columns"),
        ('{"a": [{}], "b": [{}]}', "several lists: a, b"),
        ('{"question": "q", "answer": "a"}, 1', "something follows the object"),
    ],
)
def test_a_bad_document_says_what_is_wrong(opened, raw, message):
    with pytest.raises(InputError) as error:
        opened(raw, "x.json", skip_bad=True)

    assert message in error.value.message


def test_a_row_of_a_list_can_be_bad(opened):
    raw = '[\n{"question": "q", "answer": "a"},\n\n3]'
    with pytest.raises(InputError, match="line 4: it is a number"):
        opened(raw, "x.json")


def test_a_csv_with_ragged_rows(opened):
    raw = 'question,answer\n"a\n""b""",c\nd\ne,f,g\n"h"i,j\nk,"l\nm,n\n'
    with pytest.raises(
        InputError, match=r"x.csv, line 4: it has 1 fields, .* names 2 \(and 3 more\)"
    ):
        opened(raw, "x.csv")

    data = opened(raw, "x.csv", skip_bad=True)
    assert [(item.line, item.question, item.references[0]) for item in data] == [
        (2, 'a\n"b"', "c"), (8, "m", "n"),
    ]  # fmt: skip
    assert [row.line for row in data.skipped] == [4, 5, 6, 7]
    assert "not closed" in data.skipped[-1].reason


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("question,answer,answer", "names the column 'answer' more than once"),
        ("question,answer,,", "names the column '' more than once"),
        ('"question', "line 1: a quote is opened and not closed"),
    ],
)
def test_a_csv_with_a_bad_header(opened, header, message):
    with pytest.raises(InputError, match=message):
        opened(f"{header}\nx,y,z\n", "x.csv")


@pytest.mark.parametrize("row", ['{"question": "q\0", "answer": "a"}', "q\0,a"])
def test_a_nul_is_named_by_its_byte(opened, row):
    name, head = (
        ("x.jsonl", GOOD.decode()) if row[0] == "{" else ("x.csv", "question,answer\nq,a\n")
    )
    with pytest.raises(InputError, match=r"line \d: byte \d+ is NUL"):
        opened(head + row, name)


def test_a_conversation_in_a_text_that_is_nested_too_deeply(opened):
    with pytest.raises(InputError):
        opened(json.dumps({"messages": '[{"role":' + "[" * 100_000}))


def test_a_file_that_changed_since_is_an_error(opened, tmp_path):
    data = opened(GOOD * 3)
    (tmp_path / "rows.jsonl").write_bytes(b"x" * 200)
    with pytest.raises(InputError, match="line 1") as error:
        list(data)

    assert "changed" in error.value.hint


def test_a_file_that_is_gone_is_an_error(opened, tmp_path):
    data = opened(GOOD)
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(InputError, match="cannot be read any more"):
        list(data)
    with pytest.raises(InputError, match="no file or folder"):
        open_data(DataRequest(str(tmp_path / "rows.jsonl")))
    with pytest.raises(InputError, match="cannot be read"):
        open_data(DataRequest(str(tmp_path / ("x" * 300))))


@pytest.mark.lasting
def test_a_row_of_a_megabyte_among_many_costs_no_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number in range(20_000):
            text = "x" * (1 << 20 if number == 5000 else 200)
            file.write(json.dumps({"id": number, "question": text, "answer": f"a{number}"}) + "\n")
    tracemalloc.start()
    try:
        data = open_data(DataRequest(str(path), limit=500))
        count = sum(len(item.references) for item in data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (len(data), data.facts.rows, count) == (500, 20_000, 500)
    assert peak < 7 << 20  # the file has 6 MB; its rows as objects would take 20


@pytest.mark.lasting
def test_a_list_of_json_costs_no_memory(tmp_path):
    path = tmp_path / "rows.json"
    row = {"question": "q" * 1000, "answer": "a"}
    path.write_text(json.dumps([row] * 4000, indent=1))
    tracemalloc.start()
    try:
        data = open_data(DataRequest(str(path)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(data) == 4000
    assert peak < 1 << 20  # the file has 4


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "from",
                    "content",
                    "value",
                    "text",
                    "aliases",
                    "answer_start",
                    "tool_calls",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
ROW = st.dictionaries(
    st.sampled_from([
        "messages", "conversations", "prompt", "completion", "chosen", "rejected", "instruction",
        "input", "output", "history", "system", "text", "label", "question", "answer", "answers",
        "context", "id", "tools",
    ]),
    JSON,
    max_size=5,
)  # fmt: skip


def use(path, raw):
    path.write_bytes(raw)
    for skip_bad in (False, True):
        with contextlib.suppress(DecantError):
            for item in open_data(DataRequest(str(path), skip_bad=skip_bad)):
                json.dumps([item.messages, item.references]).encode()


FEW = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


@FEW
@given(rows=st.lists(ROW, min_size=1, max_size=4), is_list=st.booleans())
def test_no_row_whatever_it_holds_is_a_crash(tmp_path, rows, is_list):
    text = json.dumps(rows) if is_list else "\n".join(map(json.dumps, rows))
    use(tmp_path / "x.json", text.encode())


@FEW
@given(
    raw=st.binary(max_size=60)
    | st.text(alphabet='{}[]",:\n\r\t\\ aé0', max_size=60).map(str.encode),
    name=st.sampled_from(["x.jsonl", "x.json", "x.csv", "x.tsv", "x.parquet", "x.jsonl.gz"]),
    head=st.sampled_from(
        [b"", b"\xff\xfe", b"question,answer\n", b'{"data": [', b"PAR1", b"\x1f\x8b"]
    ),
)
def test_no_bytes_are_a_crash(tmp_path, raw, name, head):
    use(tmp_path / name, head + raw)


@FEW
@given(place=st.integers(0, 400), byte=st.binary(min_size=1, max_size=1))
def test_no_changed_byte_is_a_crash(tmp_path, place, byte):
    row = b'{"messages": [{"role": "user", "content": "q\\u00e9"}, {"role": "assistant",'
    raw = (row + b' "content": "a"}]}\n') * 4
    use(tmp_path / "x.jsonl", raw[:place] + byte + raw[place + 1 :])
