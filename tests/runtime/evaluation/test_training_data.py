"""Data that an adapter names as what it was trained on."""

from __future__ import annotations

import json

import pytest

from runtime.evaluation.data.training_data import leaks

AXOLOTL = (
    "---\nbase_model: x\n---\n```yaml\ndatasets:\n  - path: faq.jsonl\n    type: alpaca\n```\n"
)
FILES = {
    "README.md": "---\nbase_model: org/base\ndatasets:\n- org/faq\n- other/data\n---\n# Adapter\n",
    "axolotl_config.yaml": "datasets:\n  - path: org/faq\n    type: alpaca\n",
    "train_config.yaml": "data:\n  train: org/faq\n",
    "training_args.yaml": "dataset: alpaca, org/faq\ndataset_dir: data\n",
    "args.json": json.dumps({"script_args": {"dataset_name": "Org/FAQ"}}),
    "training_config.json": json.dumps({"dataset_mixer": {"train": "org/faq"}}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_hub_dataset_is_found_in_trainers_files(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])

    sentence = leaks(tmp_path, "org/faq")
    assert f"{name} says" in sentence
    assert "no held-out split was named" in sentence
    assert "only if training left them out" in leaks(tmp_path, "org/faq", is_held_out=True)
    assert leaks(tmp_path, "org/faq:main", split="train")
    assert leaks(tmp_path, "https://huggingface.co/datasets/org/faq")
    assert leaks(tmp_path, "org/faq", split="test") is None
    assert leaks(tmp_path, "org/base") is None
    assert leaks(tmp_path, "org/fa") is None


LOCAL = {
    "README.md": AXOLOTL,
    "adapter_config.json": json.dumps({"data": "./faq.jsonl", "fine_tune_type": "lora"}),
    "config.yml": "datasets:\n- path: json\n  data_files: [C:\\data\\faq.jsonl]\n",
    "dataset_info.json": json.dumps({"my_faq": {"file_name": "faq.jsonl"}}),
    "llamaboard_config.yaml": "train.dataset: [a]\ntop:\n  dataset: faq\n",
}


@pytest.mark.parametrize("name", LOCAL)
def test_a_file_is_found_by_its_name(tmp_path, name):
    (tmp_path / name).write_text(LOCAL[name])
    data = tmp_path / "data"
    data.mkdir()
    for file in ("faq.jsonl", "faq2.jsonl"):
        (data / file).write_text("{}")

    assert leaks(tmp_path, str(data / "faq.jsonl"))
    assert leaks(tmp_path, str(data / "faq2.jsonl")) is None


def test_mlx_names_the_folder_with_train_jsonl(tmp_path):
    adapter, data = tmp_path / "adapters", tmp_path / "data"
    for folder in (adapter, data):
        folder.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"data": "./data"}))
    for name in ("train.jsonl", "test.jsonl"):
        (data / name).write_text("{}")

    assert leaks(adapter, str(data / "train.jsonl"))
    assert leaks(adapter, str(data / "test.jsonl")) is None
    assert leaks(adapter, str(data))


def test_a_checkpoint_belongs_to_its_run(tmp_path):
    (tmp_path / "README.md").write_text(FILES["README.md"])
    (tmp_path / "checkpoint-50").mkdir()

    assert leaks(tmp_path / "checkpoint-50", "org/faq")
    assert leaks(tmp_path / "adapter.gguf", "org/faq")


@pytest.mark.parametrize(
    "text", ["---\n[\n---", "---\n- a\n---", "no front", "---\ndatasets: 3\n---\n"]
)
def test_a_damaged_readme_names_nothing(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "x.json").write_text("[" * 100_000)
    (tmp_path / "y.yaml").write_bytes(b"\xff\0: [")

    assert leaks(tmp_path, "org/faq") is None
    assert leaks(tmp_path / "absent", "org/faq") is None
