"""Right files pass, and each way to make one wrong is found."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from exporter.core.errors import VerifyError
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.inputs.adapter import open_adapter
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import WeightedAdapter
from exporter.verify.expected import expected_of
from exporter.verify.light import verify_light
from exporter.verify.verification import Verification
from tests.support.other_tokenizers import make_bpe, make_tuner
from tests.support.roads import shake
from tests.support.tiny import make_adapter, make_base, make_tokenizer
from tests.support.verified import check, values_of, weakened

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

QUANTS = ("F16", "Q8_0", "Q4_K_M", "IQ4_XS")
SMALL = 0.01  # of a matrix's values: a change that hides below a step of 4 bits


def strength(found: Verification) -> float:
    return check(found, "weights").numbers["strength"]


@pytest.fixture(scope="session")
def small_adapter(tiny_base: Path) -> Path:
    """An adapter whose change is a hundredth of the weights, as trained ones are."""
    return weakened(make_adapter(tiny_base.parent / "small", tiny_base), SMALL)


@pytest.mark.parametrize("quant", QUANTS)
def test_a_right_export_passes(pour, verify, tiny_base, tiny_adapter, tmp_path, quant):
    found = verify(
        pour(tiny_base, tiny_adapter, tmp_path / "m.gguf", quant), tiny_base, tiny_adapter
    )

    found.refuse()
    assert strength(found) == pytest.approx(1, abs=0.03)
    assert check(found, "weights").numbers["worst"] < 1


def test_a_merge_in_the_bases_type_passes(toolchain, verify, tiny_base, tiny_adapter, tmp_path):
    from exporter.export import export
    from exporter.formats.export_request import ExportRequest

    quants = ("F32", "F16", "BF16", "Q8_0", "Q4_K_M")
    files = tuple(tmp_path / f"{quant}.gguf" for quant in quants)
    export(
        ExportRequest(((tiny_adapter, 1.0),), tiny_base, quants, files, merge_dtype="base"),
        toolchain,
    )

    for file in files:
        verify(file, tiny_base, tiny_adapter, rows=0).refuse()


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def ends(request, tmp_path_factory) -> Path:
    """A base whose embeddings are tied, or not. Treat as read-only."""
    folder = tmp_path_factory.mktemp("ends") / "base"
    return make_base(folder, tie_word_embeddings=request.param, num_hidden_layers=2)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_rslora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"up_proj": 3}},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
        {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
    ],
    ids=["dora", "patterns", "ends", "saved", "tokens", "pissa"],
)
def test_every_kind_of_change_passes(pour, verify, tmp_path, settings, ends):
    adapter = make_adapter(tmp_path / "lora", ends, **settings)

    for quant in ("F16", "Q4_K_M"):
        file = pour(ends, adapter, tmp_path / f"{quant}.gguf", quant)
        found = verify(file, ends, adapter, rows=0)
        found.refuse()
        assert check(found, "weights").numbers["merged"] > 0

    assert not verify(pour(ends, None, tmp_path / "b.gguf", "Q8_0"), ends, adapter, rows=0).ok


def test_other_tuners_pass(pour, verify, tiny_base, tmp_path):
    from peft import IA3Config, LoKrConfig

    targets = ["q_proj", "v_proj"]
    for number, config in enumerate(
        (
            LoKrConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"),
            IA3Config(target_modules=targets, feedforward_modules=[], task_type="CAUSAL_LM"),
        )
    ):
        adapter = make_tuner(tmp_path / f"tuner{number}", tiny_base, config)
        file = pour(tiny_base, adapter, tmp_path / f"{number}.gguf", "Q4_K_M")
        verify(file, tiny_base, adapter).refuse()
        plain = pour(tiny_base, None, tmp_path / f"plain{number}.gguf", "Q4_K_M")
        assert not verify(plain, tiny_base, adapter).ok


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gemma2", "gemma3", "phi3", "gpt2",
                                  "bloom"])  # fmt: skip
def test_architectures_that_the_converter_rearranges_pass(
    pour, verify, toolchain, tmp_path, monkeypatch, name
):
    from tests.support.architectures import ARCHITECTURES, make_architecture

    made = ARCHITECTURES[name]
    base = make_architecture(name, tmp_path / "base")
    if name in ("gpt2", "bloom", "qwen3_moe"):
        make_bpe(base, toolchain, monkeypatch)
    else:
        make_tokenizer(base)
    more = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    adapter = make_adapter(
        tmp_path / "lora", base, target_modules=made.linear, **(more if made.experts else {})
    )

    file = pour(base, adapter, tmp_path / "m.gguf", "Q8_0")
    found = verify(file, base, adapter, rows=0)
    assert check(found, "weights").problems == ()
    assert check(found, "settings").problems == ()
    assert strength(found) == pytest.approx(1, abs=0.02)

    plain = verify(pour(base, None, tmp_path / "b.gguf", "Q8_0"), base, adapter)
    assert not check(plain, "weights").ok


# ---- wrong files -------------------------------------------------------------------------


@pytest.mark.parametrize("quant", QUANTS)
def test_a_missing_merge_is_found_below_the_quantizations_step(
    pour, verify, tiny_base, small_adapter, tmp_path, quant
):
    right = pour(tiny_base, small_adapter, tmp_path / "right.gguf", quant)
    without = pour(tiny_base, None, tmp_path / "without.gguf", quant)
    twice = pour(tiny_base, small_adapter, tmp_path / "twice.gguf", quant, 2.0)

    verify(right, tiny_base, small_adapter).refuse()
    for wrong, times in ((without, "-?0.[01]"), (twice, "[12].[0189]")):
        with pytest.raises(VerifyError, match=rf"hold.* {times}. times the adapter's change"):
            verify_strength(verify(wrong, tiny_base, small_adapter))


def verify_strength(found: Verification) -> None:
    """Raise for what was found of the strength alone: in F16 single values tell, too."""
    weights = check(found, "weights")
    problems = tuple(text for text in weights.problems if "times the adapter" in text)
    Verification(found.path, (type(weights)("weights", problems, ""),), 0).refuse()


@pytest.mark.parametrize("quant", QUANTS)
def test_another_adapter_is_found(pour, verify, tiny_base, small_adapter, tmp_path, quant):
    other = weakened(make_adapter(tmp_path / "other", tiny_base, seed=9), SMALL)
    file = pour(tiny_base, other, tmp_path / "m.gguf", quant)

    with pytest.raises(VerifyError, match="times the adapter's change"):
        verify_strength(verify(file, tiny_base, small_adapter))


def permute_heads(path: Path) -> None:
    """Undo what the converter does to Llama's query heads."""
    rows = values_of(path, "blk.1.attn_q.weight")
    halves = np.array(rows).reshape(4, 32, 2, -1)  # (head, pair, half, bytes)
    rows[:] = halves.swapaxes(1, 2).reshape(rows.shape)


def transpose(path: Path) -> None:
    rows = values_of(path, "blk.1.attn_output.weight").view(np.float16)
    rows[:] = np.array(rows).T


def swap_layers(path: Path) -> None:
    one, other = (values_of(path, f"blk.{n}.ffn_up.weight") for n in (0, 1))
    one[:], other[:] = np.array(other), np.array(one)


def shift_norm(path: Path) -> None:
    norm = values_of(path, "blk.1.attn_norm.weight").view(np.float32)
    norm += 1


@pytest.mark.parametrize(
    ("mutate", "named"),
    [
        (permute_heads, r"blk\.1\.attn_q\.weight"),
        (transpose, r"blk\.1\.attn_output\.weight"),
        (swap_layers, r"blk\.0\.ffn_up\.weight"),
        (shift_norm, r"blk\.1\.attn_norm\.weight"),
    ],
)
def test_a_rearranged_tensor_is_found_by_name(
    pour, verify, tiny_base, tiny_adapter, tmp_path, mutate, named
):
    file = pour(tiny_base, tiny_adapter, tmp_path / "m.gguf", "F16")
    mutate(file)

    with pytest.raises(VerifyError, match=rf"`{named}` \(F\d\d\) is "):
        verify(file, tiny_base, tiny_adapter).refuse()


@pytest.mark.parametrize("quant", ["Q4_K_M", "IQ4_XS", "Q2_K", "IQ3_S", "TQ1_0"])
def test_permuted_heads_are_found_in_few_bits(
    pour, verify, tiny_base, tiny_adapter, tmp_path, quant
):
    file = pour(tiny_base, tiny_adapter, tmp_path / "m.gguf", quant)
    verify(file, tiny_base, tiny_adapter).refuse()
    permute_heads(file)

    with pytest.raises(VerifyError, match=r"`blk\.1\.attn_q\.weight` \(\w+\) is"):
        verify(file, tiny_base, tiny_adapter).refuse()


@pytest.mark.parametrize("quant", QUANTS)
def test_a_flipped_byte_is_found_when_all_rows_are_asked_for(
    pour, verify, tiny_base, tiny_adapter, tmp_path, quant
):
    file = pour(tiny_base, tiny_adapter, tmp_path / "m.gguf", quant)
    rows = values_of(file, "blk.0.attn_k.weight")
    rows[77, 1] ^= 0xFF  # in F16 a sign and exponent, else the block's scale
    rows.flush()

    with pytest.raises(VerifyError, match=r"`blk\.0\.attn_k\.weight` \(\w+\) "):
        verify(file, tiny_base, tiny_adapter, rows=0).refuse()


def test_a_file_of_another_base_is_found(pour, verify, tiny_base, tiny_adapter, tmp_path):
    other = make_base(tmp_path / "other", seed=5)
    file = pour(other, tiny_adapter, tmp_path / "m.gguf", "Q4_K_M")

    with pytest.raises(VerifyError, match=r"is like another tensor \(cosine"):
        verify(file, tiny_base, tiny_adapter).refuse()


def test_a_file_of_fewer_layers_is_found(pour, verify, tiny_base, tiny_adapter, tmp_path):
    short = make_base(tmp_path / "short", num_hidden_layers=2)
    file = pour(short, None, tmp_path / "m.gguf", "F16")

    with pytest.raises(VerifyError, match=r"`blk\.2\.\w+\.weight` is missing"):
        verify(file, tiny_base, tiny_adapter).refuse()


def test_a_grown_vocabulary_passes_and_is_missed_when_absent(pour, verify, tiny_base, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = make_base(tmp_path / "base", tie_word_embeddings=True)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    model.resize_token_embeddings(320 + 32, mean_resizing=False)
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trained = get_peft_model(model, config)
    shake(trained)
    trained.save_pretrained(tmp_path / "lora")
    file = pour(base, tmp_path / "lora", tmp_path / "m.gguf", "Q8_0")

    verify(file, base, tmp_path / "lora").refuse()
    with pytest.raises(VerifyError, match=r"`token_embd\.weight` is \[352, 256\] and should be"):
        verify(file, base, None).refuse()


def test_what_a_type_has_no_room_for_is_said_with_a_type_that_has(
    pour, verify, tiny_base, tiny_adapter, tmp_path
):
    large = weakened(Path(shutil.copytree(tiny_adapter, tmp_path / "lora")), 1e6)
    for quant, fits in (("F16", False), ("BF16", True)):
        found = check(
            verify(pour(tiny_base, large, tmp_path / f"{quant}.gguf", quant), tiny_base, large),
            "weights",
        )
        assert found.ok == fits
        if not fits:
            assert re.search(
                r"\(F16\) cannot hold \d\S*, which base and adapter give", found.problems[0]
            )
            assert "`-q BF16`" in found.hint


def test_a_weak_adapter_that_is_not_there_is_found_beside_a_strong_one(
    toolchain, tiny_base, tiny_adapter, small_adapter, tmp_path
):
    both = ((tiny_adapter, 0.5), (small_adapter, 1.0))
    plan = plan_merge(
        open_checkpoint(tiny_base), [WeightedAdapter(open_adapter(a), s) for a, s in both]
    )
    found = {}
    twice = (both[0], (small_adapter, 2.0))
    for name, adapters in {"both": both, "one": both[:1], "twice": twice}.items():
        path = tmp_path / f"{name}.gguf"
        export(ExportRequest(adapters, tiny_base, ("Q4_K_M",), (path,)), toolchain)
        with expected_of(plan, toolchain) as expected:
            found[name] = check(verify_light(path, expected, toolchain), "weights")

    assert found["both"].problems == ()
    assert re.match(r"`small` is there -?0\.0\d times", found["one"].problems[-1])
    assert re.match(r"`small` is there (1\.9|2\.0)\d times", found["twice"].problems[-1])
