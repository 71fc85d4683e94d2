from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.core.errors import CheckpointError
from exporter.core.safetensors import read_header
from tests.support.raw import write_raw_safetensors, write_safetensors


def entry(begin: object = 0, end: object = 16, shape: object = (2, 2), dtype: object = "F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_come_in_name_order_with_their_places(tmp_path):
    path = write_safetensors(tmp_path / "m", {"b": (2, 3), "a": (4,)})

    tensors = read_header(path, error=CheckpointError)

    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert list(tensors) == ["a", "b"]
    assert tensors["a"].shape == (4,)
    assert tensors["b"].nbytes == 24
    assert tensors["a"].offset == 8 + header + 24


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"x": entry(end=12)}, "12 bytes for F32"),
        ({"x": entry(end=64, shape=[4, 4])}, "cut short"),
        ({"x": entry(dtype="Q9")}, "unknown type 'Q9'"),
        ({"x": entry(dtype=["F32"])}, "`x`"),
        ({"x": entry(shape=[2, -2])}, "not whole numbers"),
        ({"x": entry(shape=[2, 2.0])}, "not whole numbers"),
        ({"x": entry(shape="22")}, "not whole numbers"),
        ({"x": entry(begin=-4)}, "not whole numbers"),
        ({"x": {"dtype": "F32"}}, "`x`"),
        ({"x": 3}, "not an object"),
        ({"x": entry(), "y": entry(4, 20)}, "overlap"),
        ([1], "not an object"),
    ],
)
def test_a_header_that_lies_is_refused_by_name(tmp_path, entries, said):
    path = write_raw_safetensors(tmp_path / "m", json.dumps(entries).encode(), 32)

    with pytest.raises(CheckpointError, match=said) as caught:
        read_header(path, error=CheckpointError)

    assert str(path) in caught.value.message


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 1000])
def test_a_header_length_beyond_the_file_is_refused_without_reading_it(tmp_path, length):
    path = write_raw_safetensors(tmp_path / "m", b"{}", 0, length=length)

    with pytest.raises(CheckpointError, match="cut short"):
        read_header(path, error=CheckpointError)


def test_duplicate_keys_are_refused(tmp_path):
    one = json.dumps(entry())
    path = write_raw_safetensors(tmp_path / "m", f'{{"x": {one}, "x": {one}}}'.encode(), 16)

    with pytest.raises(CheckpointError, match="`x` is there twice"):
        read_header(path, error=CheckpointError)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = write_safetensors(tmp_path / "m", {"a": (2, 2), "b": (3,)}).read_bytes()
    for end in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:end])

        with pytest.raises(CheckpointError):
            read_header(tmp_path / "cut", error=CheckpointError)


@pytest.mark.lasting
@settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(header=st.binary(max_size=200), length=st.none() | st.integers(0, 2**64 - 1))
def test_no_bytes_make_it_raise_anything_else(tmp_path, header, length):
    path = write_raw_safetensors(tmp_path / "m", header, 8, length=length)
    try:
        read_header(path, error=CheckpointError)
    except CheckpointError:
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {}, optional={"dtype": st.just("F32") | JSON, "shape": JSON, "data_offsets": JSON}
)


@pytest.mark.lasting
@settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(entries=st.dictionaries(st.text(max_size=4), ENTRY | JSON, max_size=3))
def test_no_json_makes_it_raise_anything_else(tmp_path, entries):
    path = write_raw_safetensors(tmp_path / "m", json.dumps(entries).encode(), 64)
    try:
        read_header(path, error=CheckpointError)
    except CheckpointError:
        pass
