from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.core.errors import ModelError
from exporter.core.gguf import Array, read_gguf
from exporter.llamacpp.toolchain import recipe


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory):
    """The smoke test's model: one layer of Q4_K. Treat as read-only."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    recipe("tiny").write_tiny_gguf(path)
    return path


def test_a_whole_file_is_understood(tiny_gguf):
    file = read_gguf(tiny_gguf)

    assert file.architecture == "llama"
    assert file.number("llama.block_count") == 1
    assert {tensor.type.name for tensor in file.tensors} >= {"Q4_K", "F32"}
    assert max(t.offset + t.nbytes for t in file.tensors) <= tiny_gguf.stat().st_size


def test_of_long_arrays_only_the_first_items_are_kept(tiny_gguf):
    tokens = read_gguf(tiny_gguf, keep_items=3).metadata["tokenizer.ggml.tokens"]

    assert isinstance(tokens, Array)
    assert len(tokens.items) == 3
    assert tokens.length > 3


def test_a_file_cut_anywhere_is_refused(tiny_gguf, tmp_path):
    whole = tiny_gguf.read_bytes()
    first = min(tensor.offset for tensor in read_gguf(tiny_gguf).tensors)
    for end in [*range(0, first, 97), *range(first, len(whole), 50_000), len(whole) - 64]:
        (tmp_path / "cut.gguf").write_bytes(whole[:end])

        with pytest.raises(ModelError, match="not a whole GGUF"):
            read_gguf(tmp_path / "cut.gguf")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"MIT License\n" * 9, b"GGUF" + bytes(100)])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)

    with pytest.raises(ModelError, match="not a whole GGUF"):
        read_gguf(tmp_path / "x.gguf")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ModelError, match="there is no file"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(ModelError, match="cannot read"):
        read_gguf(tmp_path)


@pytest.mark.lasting
@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 4000), value=st.integers(0, 255))
def test_no_single_wrong_byte_makes_it_raise_anything_else(tiny_gguf, tmp_path_factory, at, value):
    content = bytearray(tiny_gguf.read_bytes())
    content[at] = value
    path = tmp_path_factory.getbasetemp() / "one-byte.gguf"
    path.write_bytes(content)
    try:
        read_gguf(path)
    except ModelError:
        pass


@pytest.mark.parametrize("count", [2**26, 2**31, 2**32 - 1])
def test_more_layers_than_tensors_are_refused(count, tiny_gguf, tmp_path):
    """Whatever counts layers would otherwise never end, or fill the memory."""
    key = b"llama.block_count" + (4).to_bytes(4, "little")  # a uint32
    whole = tiny_gguf.read_bytes()
    at = whole.index(key) + len(key)
    path = tmp_path / "many.gguf"
    path.write_bytes(whole[:at] + count.to_bytes(4, "little") + whole[at + 4 :])

    with pytest.raises(ModelError, match=rf"`llama\.block_count` is {count}, and there are \d+"):
        read_gguf(path)
