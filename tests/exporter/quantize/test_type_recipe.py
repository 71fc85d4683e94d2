"""Types by name: what is asked for, and that llama-quantize makes the same of it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from exporter.core.errors import InputError, UnsupportedError
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.llamacpp.converter_import import imported
from exporter.quantize.type_recipe import Recipe, check_recipe, parse_rule
from tests.support.reference import convert_with_llamacpp, quantize_with_llamacpp, read_gguf

TYPES = {"--output-tensor-type": "output_type", "--token-embedding-type": "embedding_type"}


def recipe_of(*options: str) -> Recipe:
    """The recipe that llama-quantize's own options mean."""
    pairs = dict.fromkeys(TYPES)
    rules = []
    for option, value in pairwise(options):
        if option in TYPES:
            pairs[option] = parse_rule(f"x={value}").type
        if option == "--tensor-type":
            rules.append(parse_rule(value))
    return Recipe(
        tensor_types=tuple(rules),
        output_type=pairs["--output-tensor-type"],
        embedding_type=pairs["--token-embedding-type"],
        pure="--pure" in options,
    )


@pytest.mark.llamacpp
@pytest.mark.trained
def test_types_by_name_give_llama_quantizes_bytes(toolchain, tiny_base, tmp_path):
    whole = convert_with_llamacpp(toolchain, tiny_base, tmp_path / "whole.gguf")
    plain = read_types(toolchain, quantize_with_llamacpp(
        toolchain, whole, tmp_path / "plain.gguf", "Q4_K_M"
    ))  # fmt: skip
    for number, options in enumerate(
        [
            ("--pure",),
            ("--output-tensor-type", "q8_0"),
            ("--token-embedding-type", "f16"),
            ("--tensor-type", "ATTN_V=q5_0", "--tensor-type", r"blk\.[02]\.ffn_(up|gate)=q3_k"),
            ("--tensor-type", "attn_q=bf16", "--tensor-type", "attn=q2_k", "--pure"),
        ]
    ):
        ours = tmp_path / f"ours-{number}.gguf"
        recipe = recipe_of(*options)
        request = ExportRequest(
            (), tiny_base, ("Q4_K_M",), (ours,), merge_dtype="base", recipe=recipe
        )
        export(request, toolchain)
        usual = quantize_with_llamacpp(
            toolchain, whole, tmp_path / "usual.gguf", "Q4_K_M", *options
        )

        with imported(toolchain):
            expected, (told, actual) = read_gguf(usual)[1], read_gguf(ours)
        assert actual == expected, options
        assert {name: kind for name, (kind, *_) in actual.items()} != plain, options
        assert told["decant.quant"][1] == " ".join(["Q4_K_M", *recipe.overrides()])


def read_types(toolchain, path) -> dict[str, str]:
    with imported(toolchain):
        return {name: kind for name, (kind, *_) in read_gguf(path)[1].items()}


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (("attn_x=q8_0",), "names no tensor"),
        (("attn_norm=q8_0",), r"has no effect: blk.0.attn_norm.weight \[256\] stays F32"),
        (("attn=q8_0", "attn_q=q6_k"), r"`--tensor-type attn_q=q6_k` has no effect"),
        (("(?i)attn=q8_0",), "cannot read a pattern"),
    ],
)
def test_a_rule_without_effect_is_refused_before_work(
    rules, message, toolchain, tiny_base, tmp_path
):
    recipe = Recipe(tensor_types=tuple(map(parse_rule, rules)))
    request = ExportRequest((), tiny_base, ("Q4_K_M",), (tmp_path / "x.gguf",), recipe=recipe)

    with pytest.raises(InputError, match=message):
        export(request, toolchain)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.llamacpp
@pytest.mark.trained
def test_a_tables_type_must_divide_its_rows(toolchain, tmp_path):
    from tests.support.tiny import make_base

    base = make_base(
        tmp_path / "base", hidden_size=96, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    recipe = recipe_of("--token-embedding-type", "q6_k")
    request = ExportRequest((), base, ("Q8_0",), (tmp_path / "x.gguf",), recipe=recipe)

    with pytest.raises(InputError, match="rows have 96 values, not a multiple of 256"):
        export(request, toolchain)


@pytest.mark.parametrize("text", ["ffn_down", "=q8_0", "ffn_down=", "("])
def test_what_is_no_rule_is_refused_with_an_example(text):
    with pytest.raises(InputError, match="not a rule") as caught:
        parse_rule(text)

    assert "ffn_down=q6_k" in caught.value.hint


def test_a_wrong_pattern_and_a_wrong_type_are_named():
    with pytest.raises(InputError, match=r"'a\(' is not a regular expression"):
        parse_rule("a(=q8_0")
    with pytest.raises(UnsupportedError, match="unknown tensor type 'q4_k_m'") as caught:
        parse_rule("a=q4_k_m")
    assert "did you mean Q4_K or" in caught.value.hint
    assert "Q8_1" not in caught.value.hint


def test_files_of_floats_take_no_recipe():
    with pytest.raises(UnsupportedError, match=r"`--pure` has no meaning for F16"):
        check_recipe(Recipe(pure=True), ("Q8_0", "F16"))
