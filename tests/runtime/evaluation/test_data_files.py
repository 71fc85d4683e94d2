"""Files of every kind hold the same rows, and samples of them depend on the seed alone."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import json
import random
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exporter.core.errors import InputError
from runtime.evaluation.data import parquet_rows
from runtime.evaluation.data.open_data import DataRequest, open_data

ROWS = [
    {"question": f'What,\n"{n}" is ü?', "answer": f"{n}\tü", "lang": "de" if n % 2 else "fr"}
    for n in range(300)
]


def write_jsonl(path):
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS))


def write_json(path):
    path.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False))


def write_object(path):
    path.write_text(json.dumps({"version": [1, {}], "data": ROWS, "info": {"n": 1}}))


def write_csv(path, delimiter=",", newline="\r\n"):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(
            file, list(ROWS[0]), delimiter=delimiter, lineterminator=newline, quotechar='"'
        )
        writer.writeheader()
        writer.writerows(ROWS)


def with_odd_columns():
    """The rows with a picture, bytes and a time, which are left out."""
    at = dt.datetime(2000, 1, 1, tzinfo=dt.timezone.utc)
    rows = [
        {**row, "picture": {"bytes": b"\xff", "path": "x"}, "at": at, "raw": b"\xff"}
        for row in ROWS
    ]
    return pa.Table.from_pylist(rows)


def write_parquet(path, compression="snappy"):
    pq.write_table(with_odd_columns(), path, row_group_size=70, compression=compression)


def write_arrow(path, new=pa.ipc.new_stream, table=None):
    table = with_odd_columns() if table is None else table
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=70)


def write_zstd(path):
    write_jsonl(path.with_suffix(""))
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(path.with_suffix("").read_bytes())


WRITERS = {
    "a.jsonl": write_jsonl,
    "a.ndjson": write_jsonl,
    "lines.json": write_jsonl,
    "list.json": write_json,
    "list.jsonl": write_json,
    "object.json": write_object,
    "a.csv": write_csv,
    "semicolons.csv": lambda path: write_csv(path, ";"),
    "unix.csv": lambda path: write_csv(path, newline="\n"),
    "a.tsv": lambda path: write_csv(path, "\t"),
    "a.parquet": write_parquet,
    "zstd.parquet": lambda path: write_parquet(path, "zstd"),
    "a.arrow": write_arrow,
    "file.arrow": lambda path: write_arrow(path, pa.ipc.new_file),
    "a.jsonl.zst": write_zstd,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_has_the_same_items(tmp_path, name):
    WRITERS[name](tmp_path / name)
    data = open_data(DataRequest(str(tmp_path / name)))

    assert [(item.question, item.references, item.columns) for item in data] == [
        (row["question"], (row["answer"],), {"lang": row["lang"]}) for row in ROWS
    ]
    assert [item.id for item in data] == [str(n) for n in range(1, 301)]
    for number in (0, 69, 70, 211, 299, -1):
        assert data[number].references == (ROWS[number]["answer"],)
    with pytest.raises(IndexError):
        data[300]


@pytest.mark.parametrize(
    "name", [name for name in WRITERS if not name.endswith((".parquet", ".arrow", ".zst"))]
)
def test_lines_are_those_of_the_file(tmp_path, name):
    write = WRITERS[name]
    write(tmp_path / name)
    lines = (tmp_path / name).read_text().split("\n")

    for item in open_data(DataRequest(str(tmp_path / name), limit=9)):
        line = lines[item.line - 1]
        if name == "object.json":
            assert item.line == 1
        elif write is write_json:
            first = json.loads("{" + lines[item.line].rstrip(",") + "}")
            assert (line, first) == ("  {", {"question": item.question})
        elif write is write_jsonl:
            assert json.loads(line)["question"] == item.question
        else:
            assert line == '"What,'
            assert lines[item.line].startswith(f'""{int(item.id) - 1}""')


def test_a_gzip_of_a_csv(tmp_path):
    write_csv(tmp_path / "a.csv")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))

    assert len(open_data(DataRequest(str(tmp_path / "a.csv.gz")))) == 300


@pytest.mark.filterwarnings("ignore")
def test_folders_of_save_to_disk_are_read_by_split(tmp_path):
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    info = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for split, count in (("train", 1), ("test", 2)):
        folder = tmp_path / split
        folder.mkdir()
        (folder / "state.json").write_text("{}")
        (folder / "dataset_info.json").write_text("{}")
        for part in range(count):
            texts = [f"{split} {part} {n}" for n in range(30)]
            table = pa.table({"text": texts, "label": [n % 2 for n in range(30)]})
            write_arrow(
                folder / f"data-0000{part}-of-0000{count}.arrow",
                table=table.replace_schema_metadata(info),
            )
        write_arrow(folder / "cache-0123456789abcdef.arrow", table=table)

    whole = open_data(DataRequest(str(tmp_path)))
    alone = open_data(DataRequest(str(tmp_path / "train")))

    assert (whole.split, len(whole), whole[59].question) == ("test", 60, "test 1 29")
    assert whole.facts.labels == ("neg", "pos")
    assert (len(alone), alone[1].references) == (30, ("pos",))


@pytest.mark.parametrize("name", ["a.arrow", "a.jsonl.zst"])
def test_damaged_files_are_errors(tmp_path, name):
    WRITERS[name](tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    for damaged in (raw[: len(raw) // 2], b"x" * 50, raw[:9]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(InputError):
            list(open_data(DataRequest(str(tmp_path / name))))


def test_squads_own_nesting(tmp_path):
    qas = [{"id": f"q{n}", "question": "Q?", "answers": [{"text": "A", "answer_start": 1}]}
           for n in range(3)]  # fmt: skip
    article = {"title": "T", "paragraphs": [{"context": "C", "qas": qas}]}
    (tmp_path / "dev.json").write_text(json.dumps({"version": "1.1", "data": [article]}))
    data = open_data(DataRequest(str(tmp_path / "dev.json")))

    assert [item.id for item in data] == ["q0", "q1", "q2"]
    assert data[2].question == "C\n\nQ?"


def test_parquet_names_the_labels(tmp_path):
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    table = pa.table({"text": ["a", "b", None], "label": [1, 0, 1]})
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet, row 3: its `text` is null"):
        open_data(DataRequest(str(tmp_path / "a.parquet")))
    data = open_data(DataRequest(str(tmp_path / "a.parquet"), skip_bad=True))

    assert data.labels == ("neg", "pos")
    assert [item.references[0] for item in data] == ["pos", "neg"]


def test_a_damaged_parquet_is_an_error(tmp_path):
    write_parquet(tmp_path / "a.parquet")
    raw = bytearray((tmp_path / "a.parquet").read_bytes())
    for name, damaged in (
        ("cut", raw[:-9]),
        ("none", b"x"),
        ("changed", raw[:4] + bytes(900) + raw[904:]),
    ):
        (tmp_path / f"{name}.parquet").write_bytes(damaged)
        with pytest.raises(InputError):
            list(open_data(DataRequest(str(tmp_path / f"{name}.parquet"))))


def test_without_pyarrow_the_hint_is_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match="pyarrow is not installed") as error:
        open_data(DataRequest(str(tmp_path / "a.parquet")))

    assert error.value.hint == "pip install 'decant-llm[eval]'"


@pytest.fixture
def sample(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    return lambda **settings: [
        item.id for item in open_data(DataRequest(str(tmp_path / "a.jsonl"), **settings))
    ]


def test_a_sample_depends_on_the_seed_alone(sample):
    assert sample(limit=5) == ["6", "70", "86", "109", "288"]
    assert sample(limit=5) != sample(limit=5, seed=1)
    assert sample(limit=999) == sample()


def test_a_sample_is_in_the_files_order_and_part_of_a_larger_one(sample):
    few, more = sample(limit=5, seed=3), sample(limit=50, seed=3)

    assert more == sorted(more, key=int)
    assert (len(few), len(more)) == (5, 50)
    assert set(few) < set(more)


def test_the_held_out_share_does_not_depend_on_the_limit(sample):
    held = sample(held_out=0.1)

    assert len(held) == 30
    assert held != sample(held_out=0.1, seed=1)
    assert set(sample(held_out=0.1, limit=7)) < set(held)
    assert set(held) != set(sample(limit=30))


@pytest.mark.parametrize("settings", [{"limit": 0}, {"held_out": 0.0}, {"held_out": 1.5}])
def test_shares_and_limits_have_bounds(sample, settings):
    with pytest.raises(InputError):
        sample(**settings)


def test_a_split_of_a_single_file_is_an_error(sample):
    with pytest.raises(InputError, match="is one file: it has no split 'test'"):
        sample(split="test")


def test_a_json_list_is_found_at_every_boundary_of_the_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.evaluation.data.json_stream.READ", 1)
    odd = ["é", "🏔\\u00e9", "\\\\"]
    rows = [{"question": random.Random(n).choice(odd) * n, "answer": [n, -1.5e3]}
            for n in range(1, 20)]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1))
    data = open_data(DataRequest(str(tmp_path / "a.json")))

    assert [item.question for item in data] == [row["question"] for row in rows]
    (tmp_path / "b.json").write_text(
        '{"version": 123456789012345, "a": true, "data": [{"text": "t"}]}'
    )
    assert open_data(DataRequest(str(tmp_path / "b.json")))[0].references == ("t",)


def test_a_field_of_a_csv_can_be_long(tmp_path):
    (tmp_path / "a.csv").write_text(f"question,answer\n{'q' * (1 << 20)},a\n")

    assert len(open_data(DataRequest(str(tmp_path / "a.csv")))[0].question) == 1 << 20


def test_rows_of_parquet_that_are_asked_for_one_by_one_are_decoded_a_batch_at_a_time(
    tmp_path, monkeypatch
):
    """Else each would decode all those before it."""
    opened = []
    usual = parquet_rows.opened
    monkeypatch.setattr(parquet_rows, "opened", lambda path: opened.append(path) or usual(path))
    count = 3 * parquet_rows.BATCH
    rows = {"question": [f"q{n}" for n in range(count)], "answer": [f"a{n}" for n in range(count)]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    data = open_data(DataRequest(str(tmp_path / "a.parquet")))
    before = len(opened)

    assert [data[n].question for n in range(count)] == rows["question"]
    assert [data[n].references for n in (5, count - 1, 200)] == [
        ("a5",),
        (f"a{count - 1}",),
        ("a200",),
    ]
    assert len(opened) - before <= 4
