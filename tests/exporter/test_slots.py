"""Headers: arrays are packed at once, to the bytes that the writer makes item by item."""

from __future__ import annotations

import struct
from enum import IntEnum

import pytest

from exporter.converter_import import imported
from exporter.slots import pack_value


class Kind(IntEnum):
    NORMAL = 1
    BYTE = 6


@pytest.mark.llamacpp
@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize(
    "values",
    [
        ["a", "ü", ""], [b"ab", b"\xff", b""], ["a", b"\xff"], ("a", "b"), [1, -2, 3],
        [Kind.NORMAL, Kind.BYTE, 3], [1.5, float("inf"), -0.0], [True, False],
        [[1, 2], [3]], range(3), b"bytes",
    ],
    ids=repr,
)  # fmt: skip
def test_arrays_are_packed_as_the_writer_packs_them(toolchain, values, tagged):
    with imported(toolchain):
        import gguf
    pack, array = gguf.GGUFWriter(None, "llama")._pack_val, gguf.GGUFValueType.ARRAY

    assert pack_value(pack, values, array, tagged) == pack(values, array, tagged)


@pytest.mark.llamacpp
@pytest.mark.parametrize("values", [[], [1, "a"], [1, 1.5], [True, 1], [None], [1 << 40], [1e300]])
def test_arrays_that_the_writer_refuses_are_refused_alike(toolchain, values):
    with imported(toolchain):
        import gguf
    pack, array = gguf.GGUFWriter(None, "llama")._pack_val, gguf.GGUFValueType.ARRAY

    refused = (ValueError, OverflowError, struct.error)
    with pytest.raises(refused) as expected:
        pack(values, array, add_vtype=True)
    with pytest.raises(refused) as actual:
        pack_value(pack, values, array, add_vtype=True)
    assert (actual.type, str(actual.value)) == (expected.type, str(expected.value))
