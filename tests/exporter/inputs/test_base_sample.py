"""decant tells bases of the same name apart by their weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exporter.inputs.base_sample import (
    EVERY_NBYTES,
    are_of_one_base,
    is_made_of,
    weights_sample,
)
from tests.support.gguf_headers import llama

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write(folder: Path, weights: bytes, name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(weights)
    return folder


@pytest.mark.parametrize("size", [1, 100, 5000, 3 * EVERY_NBYTES])
def test_the_same_weights_have_one_sample_and_others_another(tmp_path, size):
    one, copy = write(tmp_path / "one", b"a" * size), write(tmp_path / "copy", b"a" * size)
    other = write(tmp_path / "other", b"b" * size)

    assert weights_sample(one) == weights_sample(copy) != weights_sample(other)


def test_every_block_of_four_mib_is_seen(tmp_path):
    weights = bytearray(3 * EVERY_NBYTES)
    plain = weights_sample(write(tmp_path / "plain", weights))
    for block in range(3):
        changed = weights.copy()
        start = block * EVERY_NBYTES
        changed[start : start + EVERY_NBYTES] = b"x" * EVERY_NBYTES

        assert weights_sample(write(tmp_path / str(block), changed)) != plain


def test_other_files_do_not_count(tmp_path):
    base = write(tmp_path, b"weights")
    before = weights_sample(base)
    (tmp_path / "README.md").write_text("a model")

    assert weights_sample(base) == before
    assert weights_sample(write(tmp_path / "empty", b"", "config.json")) == ""


def test_a_file_is_of_a_base_by_its_commit_else_by_its_sample(tmp_path):
    cached = write(tmp_path / "models--org--final" / "snapshots" / COMMIT, b"weights")
    local, other = write(tmp_path / "a" / "final", b"weights"), write(tmp_path / "final", b"tuned")
    sample = weights_sample(local)

    def found(base: Path, name: str = "final", **keys: str) -> bool:
        told = {"decant.base": "final", **{f"decant.base.{key}": keys[key] for key in keys}}
        return is_made_of(llama(tmp_path / "m.gguf", **told), name, base)

    assert found(cached, commit=COMMIT)
    assert not found(cached, commit="f" * 40)
    assert found(local, commit=COMMIT)
    assert found(local, sample=sample)
    assert found(cached, sample=sample)
    assert not found(other, sample=sample)
    assert not found(local, name="other", sample=sample)
    assert not found(local)


def test_two_files_are_of_one_base_unless_their_headers_differ(tmp_path):
    def are(one: dict[str, str], other: dict[str, str]) -> bool:
        made = [
            llama(tmp_path / f"{number}.gguf", **{f"decant.{key}": keys[key] for key in keys})
            for number, keys in enumerate((one, other))
        ]
        return are_of_one_base(*made)

    final = {"base": "final"}
    assert are(final, final)
    assert not are({}, {})
    assert not are(final, {"base": "other"})
    assert not are({**final, "base.commit": COMMIT}, {**final, "base.commit": "f" * 40})
    assert not are({**final, "base.sample": "a"}, {**final, "base.sample": "b"})
    assert are({**final, "base.commit": COMMIT}, {**final, "base.sample": "b"})


def test_a_base_that_is_trained_again_is_sampled_again(tmp_path):
    def trained(weights: bytes, second: int) -> str:
        folder = write(tmp_path, weights)
        os.utime(folder / "model.safetensors", (second, second))
        return weights_sample(folder)

    assert trained(b"weights", 1) == trained(b"weights", 2) != trained(b"trained", 3)
