"""Weights in PyTorch's own format: read as they are, and never run."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from exporter.core.errors import AdapterError, CheckpointError
from exporter.core.safetensors import StoredTensor
from exporter.inputs.lazy_tensor import read_tensor
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.inputs.torch_pickle import read_pickled
from tests.support.raw import write_base

pytestmark = pytest.mark.trained


def values(dtype="bfloat16"):
    import torch

    torch.manual_seed(0)
    return {
        "b.weight": torch.randn(6, 4).to(getattr(torch, dtype)),
        "a.bias": torch.arange(5, dtype=torch.int64),
        "empty": torch.zeros(0, 3),
        "one": torch.tensor(2.5),
    }


def save(path, tensors, **options):
    import torch

    torch.save(tensors, path, **options)
    return path


def same(path, expected):
    import torch

    found = read_pickled(path, error=CheckpointError)
    assert list(found) == list(expected)
    for name, value in expected.items():
        actual = read_tensor(found[name])
        assert (found[name].shape, actual.dtype) == (tuple(value.shape), value.dtype)
        assert found[name].nbytes == actual.nbytes
        assert torch.equal(actual, value), name
    return found


@pytest.mark.parametrize(
    ("dtype", "zipped"),
    [
        ("bfloat16", True), ("float16", True), ("float32", True), ("float8_e4m3fn", True),
        ("bfloat16", False), ("float16", False), ("float32", False),
    ],
)  # fmt: skip
def test_every_value_comes_back(tmp_path, dtype, zipped):
    tensors = values(dtype)

    same(save(tmp_path / "m.bin", tensors, _use_new_zipfile_serialization=zipped), tensors)


def test_a_zipped_file_is_found_its_way_around_without_being_read(tmp_path):
    found = same(save(tmp_path / "m.bin", values()), values())

    assert all(isinstance(tensor, StoredTensor) for tensor in found.values())


def test_tied_and_sliced_and_turned_tensors_are_read_apart(tmp_path):
    import torch

    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "tied": whole, "rows": whole[1:], "turned": whole.T}
    tensors["parameter"] = torch.nn.Parameter(whole[:2])

    found = same(save(tmp_path / "m.bin", tensors), tensors)

    read_tensor(found["whole"]).zero_()
    read_tensor(found["turned"]).zero_()
    same(tmp_path / "m.bin", tensors)


class Evil:
    """What pickle calls when it loads this: a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 2020"])
@pytest.mark.parametrize("forced", ["0", "1"])
def test_a_pickle_with_code_is_refused_and_nothing_is_run(tmp_path, monkeypatch, zipped, forced):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    content = values() | {"x": Evil(tmp_path / "pwned")}
    path = save(tmp_path / "m.bin", content, _use_new_zipfile_serialization=zipped)

    with pytest.raises(AdapterError, match=r"m\.bin` is refused: .*system") as caught:
        read_pickled(path, error=AdapterError)

    assert "safetensors" in caught.value.hint
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 2020"])
def test_a_file_cut_anywhere_is_refused(tmp_path, zipped):
    path = save(tmp_path / "m", values(), _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, 29):
        (tmp_path / "cut").write_bytes(whole[:end])

        with pytest.raises(CheckpointError, match=r"`.*cut`"):
            read_pickled(tmp_path / "cut", error=CheckpointError)


@pytest.mark.parametrize("content", [{"model": {"a": 1}}, ["a"], {"a": "b"}, {3: None}])
def test_what_is_no_table_of_tensors_is_refused(tmp_path, content):
    with pytest.raises(CheckpointError, match="not a named tensor"):
        read_pickled(save(tmp_path / "m.bin", content), error=CheckpointError)


def test_records_that_were_moved_are_still_found_right(tmp_path):
    """An archive rewritten by another tool: torch's own sums of offsets do not hold in it."""
    expected = values()
    save(tmp_path / "old.bin", expected)
    with (
        zipfile.ZipFile(tmp_path / "old.bin") as old,
        zipfile.ZipFile(tmp_path / "new.bin", "w") as new,
    ):
        for info in reversed(old.infolist()):
            new.writestr(info.filename, old.read(info))

    same(tmp_path / "new.bin", expected)


def pickled_base(folder, *, shards=0):
    """A base whose weights are pytorch_model.bin, or so many shards with an index."""
    import torch

    write_base(folder)
    (folder / "model.safetensors").unlink()
    tensors = {f"model.layers.{n}.weight": torch.full((2, 2), float(n)) for n in range(4)}
    if not shards:
        save(folder / "pytorch_model.bin", tensors)
        return folder, tensors
    weight_map = {}
    for shard in range(shards):
        name = f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        part = dict(list(tensors.items())[shard::shards])
        weight_map |= dict.fromkeys(part, name)
        save(folder / name, part)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder, tensors


@pytest.mark.parametrize("shards", [0, 2])
def test_a_base_of_pickles_opens(tmp_path, shards):
    folder, expected = pickled_base(tmp_path / "base", shards=shards)

    found = open_checkpoint(folder).tensors

    assert sorted(found) == sorted(expected)
    assert all(float(read_tensor(found[name])[0, 0]) == expected[name][0, 0] for name in expected)


def test_safetensors_go_before_pickles(tmp_path):
    folder, _ = pickled_base(tmp_path / "base")
    write_base(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(folder / "model.safetensors")

    assert [name.split(".")[3] for name in open_checkpoint(folder).tensors] == ["self_attn"] * 2


def test_a_missing_shard_of_pickles_is_named(tmp_path):
    folder, _ = pickled_base(tmp_path / "base", shards=2)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()

    with pytest.raises(CheckpointError, match=r"00002-of-00002\.bin` is missing"):
        open_checkpoint(folder)
