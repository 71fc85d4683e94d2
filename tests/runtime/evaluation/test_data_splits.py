"""The files of a split, in folders and in hub datasets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.core.errors import InputError
from exporter.hub.endpoints import parse_endpoint
from exporter.hub.pull import Pulled, PullRequest
from exporter.hub.pull_plan import Plan, PlannedFile
from exporter.hub.repo_refs import Ref
from runtime.evaluation.data.front_matter import readme_settings
from runtime.evaluation.data.hub_dataset import dataset_ref, is_dataset_name, pull_dataset
from runtime.evaluation.data.open_data import DataRequest, open_data
from runtime.evaluation.data.split_files import find_split

SHARDS = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
          "data/test-00000-of-00001.parquet", "README.md", ".gitattributes"]  # fmt: skip
GSM8K = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: socratic
  data_files:
  - split: test
    path: socratic/test-*
---
"""
FILES = ["main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet",
         "socratic/test-00000-of-00001.parquet"]  # fmt: skip


def found(paths, readme="", wanted=None, config=None):
    return find_split(paths, readme_settings(readme), wanted, config)


@pytest.mark.parametrize(
    ("paths", "wanted", "files"),
    [
        (SHARDS, "train", SHARDS[:2]),
        (SHARDS, None, SHARDS[2:3]),
        (["train.jsonl", "valid.jsonl"], None, ["valid.jsonl"]),
        (["train.jsonl", "dev.jsonl", "test.jsonl"], "val", ["dev.jsonl"]),
        (["dataset/test.csv", "dataset/train.csv"], "test", ["dataset/test.csv"]),
        (["test/a.json", "test/b.json", "train/a.json"], "test", ["test/a.json", "test/b.json"]),
        (["my_data.jsonl", "dataset_info.json", "_x.json"], None, ["my_data.jsonl"]),
        (["data/test_sft-00000-of-00001-f7d.parquet", "data/train_sft-00000-of-00001.parquet"],
         "test_sft", ["data/test_sft-00000-of-00001-f7d.parquet"]),
        (["default/test/0000.parquet", "default/train/0000.parquet"], None,
         ["default/test/0000.parquet"]),
        (["attest.jsonl", "contest.jsonl"], "train", ["attest.jsonl", "contest.jsonl"]),
    ],
)  # fmt: skip
def test_a_split_is_found_by_the_files_names(paths, wanted, files):
    assert found(paths, wanted=wanted).files == tuple(files)


def test_a_split_that_was_not_named_is_told():
    assert "`test`" in found(SHARDS).note
    assert found(SHARDS, wanted="test").note == ""


def test_the_readme_names_the_files_of_a_configuration():
    assert found(FILES, GSM8K, None, "main").files == (FILES[1],)
    assert found(FILES, GSM8K, "train", "main").files == (FILES[0],)
    assert found(FILES, GSM8K, None, "socratic").files == (FILES[2],)
    with pytest.raises(InputError, match="several configurations") as error:
        found(FILES, GSM8K)
    assert "main, socratic" in error.value.hint
    with pytest.raises(InputError, match="no configuration 'other'"):
        found(FILES, GSM8K, None, "other")
    assert found(FILES, GSM8K.replace("name: main", "name: default")).files == (FILES[1],)


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ('data_files: "main/*.parquet"', FILES[1:2]),
        ("data_files: [main/test-00000-of-00001.parquet]", FILES[1:2]),
        ("data_files: {test: socratic/*}", FILES[2:]),
        ("data_dir: socratic", FILES[2:]),
        ("data_dir: main\n  data_files: test-*", FILES[1:2]),
    ],
)
def test_a_configuration_in_other_forms(config, files):
    readme = f"---\nconfigs:\n- config_name: c\n  {config}\n---\n"

    assert found(FILES, readme, "test").files == tuple(files)


@pytest.mark.parametrize(
    ("paths", "wanted", "message"),
    [
        (["README.md", "script.py"], None, "has no JSONL, JSON, CSV, TSV, Parquet or Arrow"),
        (SHARDS, "extra", "no split 'extra'"),
        (["train-00000-of-00001.csv", "other-00000-of-00001.csv"], None, "several splits"),
    ],
)
def test_a_split_that_is_not_there_is_an_error(paths, wanted, message):
    with pytest.raises(InputError, match=message):
        found(paths, wanted=wanted)


@pytest.fixture
def folder(tmp_path):
    for name, count in (("train-00000-of-00002", 3), ("train-00001-of-00002", 2), ("test", 1)):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"question": name, "answer": f"{n}"}) + "\n" for n in range(count))
        )
    return tmp_path


def test_the_shards_of_a_split_are_read_as_one(folder):
    data = open_data(DataRequest(str(folder), split="train"))

    assert [item.references[0] for item in data] == ["0", "1", "2", "0", "1"]
    assert [item.line for item in data] == [1, 2, 3, 4, 5]
    assert data[3].question == "train-00001-of-00002"
    assert data.split == "train"
    assert open_data(DataRequest(str(folder))).split == "test"


def test_a_bad_row_names_its_shard(folder):
    (folder / "train-00001-of-00002.jsonl").write_text("\n{}\n")
    with pytest.raises(InputError, match=r"train-00001-of-00002.jsonl, line 2: "):
        open_data(DataRequest(str(folder), split="train"))


def test_a_hub_dataset_is_what_pull_gives(folder):
    asked = []

    def pull(name, split):
        asked.append((name, split))
        return folder

    data = open_data(DataRequest("org/data", split="test"), pull=pull)

    assert (asked, len(data), data.facts.name) == ([("org/data", "test")], 1, "org/data")
    with pytest.raises(InputError, match="org/data: it has no split 'x'"):
        open_data(DataRequest("org/data", split="x"), pull=pull)
    for missing in ("org/data.jsonl", "/org/data", "./data", "a/b/c"):
        with pytest.raises(InputError, match="no file or folder"):
            open_data(DataRequest(missing), pull=pull)
    with pytest.raises(InputError, match="no file or folder"):
        open_data(DataRequest("org/data"))


def test_names_of_datasets():
    assert dataset_ref("org/data") == (Ref("org/data", "dataset"), None)
    assert dataset_ref("datasets/org/data@v1:main") == (Ref("org/data", "dataset", "v1"), "main")
    assert (
        dataset_ref("https://huggingface.co/datasets/org/data/blob/main/a.csv")[0].file == "a.csv"
    )
    assert not is_dataset_name("data")


def test_a_dataset_is_pulled_by_its_split_alone(tmp_path):
    (tmp_path / "README.md").write_text(GSM8K)
    paths = ["README.md", *FILES]
    pulls = []

    def fetch(request, *, dry_run=False, report=None):
        pulls.append((request.ref, request.choice.files, dry_run))
        files = tuple(PlannedFile(path, 1, "0" * 40) for path in paths)
        plan = Plan(request.ref, "c" * 40, files, ("huggingface.co",), is_reference=True)
        return Pulled(plan, tmp_path, (), 0, 0.0, {})

    request = PullRequest(
        Ref("any/model"), (parse_endpoint("https://huggingface.co"),), Path("cache")
    )

    assert pull_dataset("org/data:main", "train", request=request, fetch=fetch) == tmp_path
    ref = Ref("org/data", "dataset")
    assert pulls == [
        (ref, (), True), (ref, ("README.md",), False), (ref, ("README.md", FILES[0]), False),
    ]  # fmt: skip
    with pytest.raises(InputError, match="org/data: it has several configurations"):
        pull_dataset("org/data", None, request=request, fetch=fetch)
