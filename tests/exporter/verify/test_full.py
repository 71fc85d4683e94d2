"""Logits of GGUFs against the unmerged forward."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from exporter.core.errors import SpaceError, VerifyError
from exporter.verify.distances import compare
from exporter.verify.full import RemadeDistances, judge, verify_full
from exporter.verify.unmerged import unmerged
from exporter.verify.verification import Verification
from tests.support.other_tokenizers import make_tuner
from tests.support.raw import edit_json
from tests.support.tiny import make_adapter, make_base
from tests.support.verified import CHUNKS, plan_of

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]


def test_an_f32_gguf_answers_as_the_unmerged_model_to_float32(
    pour, toolchain, tiny_base, tiny_adapter, tmp_path
):
    file = pour(tiny_base, tiny_adapter, tmp_path / "m.gguf", "F32")

    found = verify_full(file, plan_of(tiny_base, tiny_adapter), CHUNKS, toolchain)

    assert found.problems == ()
    assert found.numbers["kl"] < 1e-9
    assert found.numbers["top1"] == 1
    assert found.numbers["tokens"] == sum(len(chunk) - 1 for chunk in CHUNKS)
    assert found.numbers["perplexity_gguf"] == pytest.approx(
        found.numbers["perplexity_tuned"], rel=1e-5
    )
    assert found.numbers["kl_of_adapter"] > 0.01


def test_a_gguf_without_the_adapter_breaks_the_limit(
    pour, toolchain, tiny_base, tiny_adapter, tmp_path
):
    for quant in ("F32", "Q8_0"):
        file = pour(tiny_base, None, tmp_path / f"{quant}.gguf", quant)
        found = verify_full(file, plan_of(tiny_base, tiny_adapter), CHUNKS, toolchain)

        with pytest.raises(VerifyError, match=r"nats from the trained model's .* at most"):
            Verification(file, (found,), 0).refuse()


def test_what_quantizing_costs_is_the_limit_and_a_wrong_file_is_beyond_it(
    pour, toolchain, tiny_base, tiny_adapter, tmp_path
):
    plan = plan_of(tiny_base, tiny_adapter)
    right = pour(tiny_base, tiny_adapter, tmp_path / "right.gguf", "Q2_K")
    found = verify_full(right, plan, CHUNKS, toolchain)

    assert found.problems == ()
    assert found.judged
    assert found.numbers["kl"] == pytest.approx(found.numbers["kl_anew"], rel=1e-6)
    assert found.numbers["kl_unquantized"] < 1e-9
    for name, adapter, scale in (("without", None, 1.0), ("twice", tiny_adapter, 2.0)):
        wrong = pour(tiny_base, adapter, tmp_path / f"{name}.gguf", "Q2_K", scale)
        (problem,) = verify_full(wrong, plan, CHUNKS, toolchain).problems
        assert "as the same values requantized are" in problem


@pytest.mark.parametrize("quant", ["Q8_0", "F32"])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_model_that_llama_cpp_computes_otherwise_is_found_though_its_rows_are_right(
    pour, toolchain, tmp_path, monkeypatch, quant, is_known
):
    """A sliding window on Mistral, which llama.cpp ignores: said, and wrong only if unforeseen."""
    base = make_base(tmp_path / "base", num_hidden_layers=1)
    edit_json(
        base / "config.json", model_type="mistral", architectures=["MistralForCausalLM"],
        sliding_window=4, head_dim=64,
    )  # fmt: skip
    file = pour(base, None, tmp_path / "m.gguf", quant)
    if not is_known:
        monkeypatch.setattr("exporter.convert.ignored_settings.CHECKS", ())

    found = verify_full(file, plan_of(base), CHUNKS, toolchain)

    otherwise = r"computes this model differently .* nothing is quantized"
    if is_known:
        assert found.problems == ()
        assert re.search(f"{otherwise}.*window.*--to safetensors", found.notes[0])
        wrong = pour(make_base(tmp_path / "other", seed=9), None, tmp_path / "w.gguf", "Q8_0")
        assert verify_full(wrong, plan_of(base), CHUNKS, toolchain).problems
        return
    with pytest.raises(VerifyError, match=otherwise):
        Verification(file, (found,), 0).refuse()


def test_what_peft_itself_does_not_load_is_not_judged(
    warm_decant, pour, tiny_base, tiny_adapter, tmp_path
):
    from safetensors.torch import load_file, save_file

    partial = Path(shutil.copytree(tiny_adapter, tmp_path / "lora"))
    path = partial / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if "layers.0.mlp.up" not in n}, path)
    file = pour(tiny_base, partial, tmp_path / "m.gguf", "Q8_0")

    made = warm_decant("verify", file, "--base", tiny_base, "--adapter", partial, "--json")

    assert made.returncode == 0, made.stderr
    logits = json.loads(made.stdout)["checks"][-1]
    assert (logits["name"], logits["judged"], logits["problems"]) == ("logits", False, [])
    assert "peft itself does not load all of" in logits["notes"][0]


def test_tokens_at_which_experts_are_nearly_tied_may_be_off_and_most_may_not():
    """A right F32 of Gemma 4: 1e-3 off nearly everywhere, a third at a few tokens."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(100, 320))
    near = logits + 1e-3 * random.normal(size=logits.shape)
    near[:5] += 0.3 * random.normal(size=(5, 320))
    far = logits + 0.02 * random.normal(size=logits.shape)
    chunks = [list(range(100))]

    def problems(other) -> tuple[str, ...]:
        found = compare([logits], [other], chunks)
        return judge(found, found, RemadeDistances(is_exact=True), found, math.inf).problems

    assert problems(near) == ()
    assert "logits are 2.1% off" in problems(far)[0] or "2.0% off" in problems(far)[0]


def test_a_model_without_room_to_be_made_anew_is_not_judged(
    pour, toolchain, tiny_base, tiny_adapter, tmp_path, monkeypatch
):
    file = pour(tiny_base, tiny_adapter, tmp_path / "m.gguf", "Q8_0")
    monkeypatch.setattr("exporter.formats.gguf_file.free_bytes", lambda folder: 0)

    found = verify_full(file, plan_of(tiny_base, tiny_adapter), CHUNKS, toolchain)

    assert (found.problems, found.judged) == ((), False)
    assert "what quantizing costs cannot be judged" in found.notes[0]
    limited = verify_full(file, plan_of(tiny_base), CHUNKS, toolchain, most_kl=1e-9)
    assert limited.problems


def test_a_tie_that_peft_merges_wrongly_is_right_by_the_unmerged_forward(pour, toolchain, tmp_path):
    base = make_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = make_adapter(tmp_path / "lora", base, target_modules=["q_proj", "lm_head"])
    file = pour(base, adapter, tmp_path / "m.gguf", "F32")

    assert verify_full(file, plan_of(base, adapter), CHUNKS, toolchain).problems == ()


def test_scale_dora_and_other_tuners_have_their_unmerged_forward(
    pour, toolchain, tiny_base, tiny_adapter, tmp_path
):
    from peft import LoKrConfig

    half = pour(tiny_base, tiny_adapter, tmp_path / "half.gguf", "F32", 0.5)
    plan = plan_of(tiny_base, tiny_adapter, scale=0.5)
    assert verify_full(half, plan, CHUNKS, toolchain).problems == ()
    config = LoKrConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    for name, adapter in (
        ("dora", make_adapter(tmp_path / "dora", tiny_base, use_dora=True)),
        ("lokr", make_tuner(tmp_path / "lokr", tiny_base, config)),
    ):
        file = pour(tiny_base, adapter, tmp_path / f"{name}.gguf", "F32")
        found = verify_full(file, plan_of(tiny_base, adapter), CHUNKS, toolchain)
        assert found.problems == (), name


def test_the_base_quantized_alike_sets_the_limit(
    pour, toolchain, tiny_base, tiny_adapter, tmp_path
):
    file = pour(tiny_base, tiny_adapter, tmp_path / "m.gguf", "Q4_K_M")
    plan = plan_of(tiny_base, tiny_adapter)

    found = verify_full(file, plan, CHUNKS, toolchain, against_base=True)

    assert found.problems == ()
    assert 0 < found.numbers["kl_of_base"] < found.numbers["kl_limit"]
    coarse = pour(tiny_base, tiny_adapter, tmp_path / "coarse.gguf", "Q2_K")
    most = found.numbers["kl_limit"]
    assert verify_full(coarse, plan, CHUNKS, toolchain, most_kl=most).problems


@pytest.mark.parametrize(
    "settings",
    [{}, {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}],
)
def test_a_base_that_does_not_fit_goes_through_the_disk_and_answers_alike(
    tiny_base, tmp_path, settings
):
    adapter = make_adapter(tmp_path / "lora", tiny_base, **settings)
    plan, told = plan_of(tiny_base, adapter), []
    answers = []
    for memory in (3_000_000, None):  # of 9.6 MB in float32; first what has no memory to inherit
        with unmerged(plan, memory=memory, report=told.append) as model:
            model.adapt()
            answers.append(list(model.logits(CHUNKS)))

    assert compare(answers[0], answers[1], CHUNKS).logit < 1e-5
    assert ["temporary file" in event.message for event in told] == [True]


def test_an_adapter_goes_where_the_base_is_whatever_device_torch_prefers(
    tiny_base, tiny_adapter, monkeypatch
):
    import torch

    # a device without memory: what is put there instead of beside the base cannot be computed with
    monkeypatch.setattr("peft.peft_model.infer_device", lambda: "meta")

    with unmerged(plan_of(tiny_base, tiny_adapter), memory=3_000_000) as model:
        model.adapt()
        adapted = {n: p for n, p in model.model.named_parameters() if "lora_" in n}
        assert {values.device for values in adapted.values()} == {torch.device("cpu")}
        assert all(np.isfinite(logits).all() for logits in model.logits(CHUNKS[:1]))


def test_a_weight_that_is_not_in_memory_is_never_computed_with(tiny_base, tiny_adapter):
    import torch

    with unmerged(plan_of(tiny_base, tiny_adapter), memory=3_000_000) as model:
        model.adapt()
        layer = model.model.get_submodule("base_model.model.model.layers.1.mlp.up_proj")
        layer.lora_A["default"].to(torch.device("meta"))
        with pytest.raises(SpaceError, match="not in memory"):
            list(model.logits(CHUNKS))


def test_the_command_reads_a_text_of_ones_own(warm_decant, pour, tiny_base, tiny_adapter, tmp_path):
    file = pour(tiny_base, tiny_adapter, tmp_path / "m.gguf", "Q8_0")
    (tmp_path / "text.txt").write_text("one two three four five six seven " * 40)

    made = warm_decant(
        "verify", file, "--base", tiny_base, "--adapter", tiny_adapter, "--text",
        tmp_path / "text.txt", "--tokens", 300, "--max-kl", 1e-12, "--json",
    )  # fmt: skip

    assert made.returncode == 7
    logits = json.loads(made.stdout)["checks"][-1]["numbers"]
    assert logits["kl_limit"] == 1e-12
    assert 200 < logits["tokens"] < 310
