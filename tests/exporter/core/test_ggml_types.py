from __future__ import annotations

import ctypes
import re

import pytest

from exporter.core.errors import UnsupportedError
from exporter.core.ggml_types import ALIASES, FTYPES, GGML_TYPES, GGMLType, parse_quant
from exporter.llamacpp.toolchain import run_tool


@pytest.mark.parametrize(
    ("text", "name"),
    [("q4_k_m", "Q4_K_M"), ("Q4_K", "Q4_K_M"), ("bf16", "BF16"), ("IQ4_xs", "IQ4_XS")],
)
def test_a_quantization_is_known_in_any_case_and_by_alias(text, name):
    assert parse_quant(text) == name


def test_an_unknown_quantization_is_named_with_the_choices():
    with pytest.raises(UnsupportedError, match="'Q4_M'") as caught:
        parse_quant("Q4_M")

    assert "Q4_K_M" in caught.value.hint


def test_rows_are_counted_in_whole_blocks():
    assert GGMLType.by_name("q4_K").nbytes((3, 512)) == 3 * 2 * 144
    assert GGMLType.by_name("F32").nbytes((5,)) == 20


@pytest.mark.llamacpp
def test_the_table_of_types_is_the_built_librarys(toolchain):
    library = ctypes.CDLL(str(toolchain.library("ggml-base")))
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t

    for kind in GGML_TYPES:
        name = library.ggml_type_name(kind.number).decode().upper()
        found = name, library.ggml_blck_size(kind.number), library.ggml_type_size(kind.number)
        assert found == (kind.name, kind.block, kind.block_nbytes)


@pytest.mark.llamacpp
def test_the_table_of_quantizations_is_llama_hs(toolchain):
    header = (toolchain.folder / "include" / "llama.h").read_text()
    numbers = dict(
        re.findall(r"^\s+LLAMA_FTYPE_(?:MOSTLY|ALL)_(\w+)\s*=\s*(\d+)", header, re.MULTILINE)
    )

    assert {name: int(numbers[name]) for name in FTYPES} == FTYPES
    assert set(ALIASES.values()) <= FTYPES.keys()


@pytest.mark.llamacpp
def test_every_quantization_of_the_built_tool_is_on_offer(toolchain):
    printed = run_tool(toolchain, "llama-quantize", ["--help"], good=(1,))
    offered = re.findall(r"^ +(?:\d+ +or +)?(\w+) +: (.*)$", printed, re.MULTILINE)
    aliases = {name: text.split()[-1] for name, text in offered if "alias for" in text}

    assert {name for name, _ in offered} - aliases.keys() - {"COPY"} == set(FTYPES)
    assert aliases == ALIASES
