"""GGUF adapters: llama.cpp's logits against transformers' and peft's unmerged forward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exporter.converter_import import imported
from exporter.core.errors import AdapterError, UnsupportedError
from exporter.lora import LoraRequest, export_lora, settled
from exporter.lora_cache import adapter_gguf
from exporter.products import Product
from tests.lora_models import CLOSE, FAR, TOKENS, forward, loaded_base, off, save, trained
from tests.warm import run_warm

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "target_modules": ATTENTION,
        "rank_pattern": {"q_proj": 2, "layers.1.k_proj": 6},
        "alpha_pattern": {"v_proj": 3},
    },
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "mica": {"init_lora_weights": "mica", "target_modules": ATTENTION},
    "attention": {"target_modules": ATTENTION},
    "stacked": {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
                "target_modules": ["q_proj"]},
    "up_and_down": {"target_parameters": ["experts.up_proj", "experts.down_proj"]},
    "square": {"target_modules": ["c_attn", "attn.c_proj"]},
    "t5": {"target_modules": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]},
    "fused": {"target_modules": "all-linear"},
}  # fmt: skip
CASES = [
    *(("llama", f) for f in ("plain", "rslora", "patterns", "embedding", "head", "mica")),
    ("qwen2", "rslora"), ("mistral", "patterns"), ("gemma3", "rslora"),
    ("phi3", "fused"), ("gpt2", "square"), ("gpt2", "plain"), ("falcon", "fused"),
    ("bloom", "fused"), ("gpt_neox", "fused"), ("qwen3", "patterns"), ("mixtral", "attention"),
    ("mixtral", "stacked"), ("qwen3_moe", "stacked"), ("gpt_oss", "stacked"), ("mamba", "plain"),
    ("mt5", "t5"), ("granitemoe", "stacked"), ("nemotron_h", "up_and_down"),
    ("gemma4_moe", "stacked"), ("falcon_h1", "plain"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "feature"), CASES)
def test_llamacpp_computes_what_peft_does_unmerged(
    lora_base_of, toolchain, vocabularies_left_out, tmp_path, name, feature
):
    base = lora_base_of(name)
    settings = FEATURES[feature]
    expected = forward(trained(base, name, tmp_path / "lora", **settings))

    made = export_lora(LoraRequest(tmp_path / "lora", base, tmp_path / "x.gguf"), toolchain)
    model = loaded_base(base, toolchain, tmp_path)
    adapter = model.adapter(made.path)

    assert made.path.stat().st_size == made.nbytes
    assert adapter
    is_t5 = name == "mt5"
    assert off(model.logits(TOKENS, adapter=adapter, encoder=is_t5), expected) < CLOSE
    assert off(model.logits(TOKENS, encoder=is_t5), expected) > FAR
    model.close()


def test_a_scale_is_in_the_file_and_multiplies_with_the_servers(lora_base_of, toolchain, tmp_path):
    base = lora_base_of("llama")
    model = trained(base, "llama", tmp_path / "lora")
    for layer in model.modules():
        if isinstance(getattr(layer, "scaling", None), dict):
            layer.scaling = {key: value * 0.5 for key, value in layer.scaling.items()}
    expected = forward(model)
    request = LoraRequest(tmp_path / "lora", base, tmp_path / "x.gguf", scale=2.0)

    path = export_lora(request, toolchain).path
    loaded = loaded_base(base, toolchain, tmp_path)

    assert off(loaded.logits(TOKENS, adapter=loaded.adapter(path), scale=0.25), expected) < CLOSE
    loaded.close()


@pytest.mark.parametrize(
    ("name", "module", "rows"),
    [
        ("mixtral", "model.layers.1.block_sparse_moe.experts.2.w1", 96),
        ("qwen3_moe", "model.layers.1.mlp.experts.2.gate_proj", 48),
    ],
)
def test_one_expert_of_transformers_4_goes_into_its_stack_and_the_others_stay(
    lora_base_of, toolchain, vocabularies_left_out, tmp_path, name, module, rows
):
    """The oracle is the base with the sum written into it: transformers 5 has no such module."""
    import shutil

    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    base = lora_base_of(name)
    torch.manual_seed(3)
    a, b = torch.randn(2, 64), torch.randn(rows, 2)
    adapter = save(tmp_path / "lora", {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b})
    shutil.copytree(base, tmp_path / "sum")
    weights = load_file(base / "model.safetensors")
    weights[f"{module}.weight"] += 5 / 2**0.5 * (b @ a)
    save_file(weights, tmp_path / "sum" / "model.safetensors", metadata={"format": "pt"})
    kind = transformers.AutoModelForCausalLM
    expected = forward(kind.from_pretrained(tmp_path / "sum", dtype=torch.float32).eval())

    path = export_lora(LoraRequest(adapter, base, tmp_path / "x.gguf"), toolchain).path
    model = loaded_base(base, toolchain, tmp_path)

    assert off(model.logits(TOKENS, adapter=model.adapter(path)), expected) < CLOSE
    assert off(model.logits(TOKENS), expected) > FAR
    model.close()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "use_dora=True.*rescales"),
    "lora_bias": ({"lora_bias": True, "target_modules": ["q_proj"]}, "lora_bias=True"),
    "a norm": ({"modules_to_save": ["norm"]}, "replaces `model.*norm.weight` as a whole"),
    "a head": ({"modules_to_save": ["lm_head"]}, "replaces `lm_head.weight` as a whole"),
    "tokens": ({"trainable_token_indices": [3, 4]}, "single tokens of `model.embed_tokens`"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "begins by changing the base"),
    "OLoRA": ({"init_lora_weights": "olora"}, "begins by changing the base"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_more_than_pairs_is_refused_with_the_reason(
    lora_base_of, toolchain, tmp_path, case
):
    settings, reason = REFUSED[case]
    trained(lora_base_of("llama"), "llama", tmp_path / "lora", **settings)

    with pytest.raises(UnsupportedError, match=reason) as caught:
        export_lora(
            LoraRequest(tmp_path / "lora", lora_base_of("llama"), tmp_path / "x.gguf"), toolchain
        )

    assert "--to lora" in caught.value.hint
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("end", ["lm_head", "embed_tokens"])
def test_tied_ends_are_refused(lora_base_of, toolchain, tmp_path, end):
    base = lora_base_of("gemma3")
    trained(base, "gemma3", tmp_path / "lora", target_modules=[end])

    with pytest.raises(UnsupportedError, match="are tied"):
        export_lora(LoraRequest(tmp_path / "lora", base, tmp_path / "x.gguf"), toolchain)


def test_an_architecture_whose_graph_passes_adapters_over_is_refused(
    lora_base_of, toolchain, tmp_path
):
    base = lora_base_of("deepseek_v3")
    trained(base, "deepseek_v3", tmp_path / "lora", target_modules=["o_proj"])

    with pytest.raises(UnsupportedError, match="without looking for adapters"):
        export_lora(LoraRequest(tmp_path / "lora", base, tmp_path / "x.gguf"), toolchain)


def test_a_table_that_llamacpp_looks_up_without_its_adapter_is_refused(
    lora_base_of, toolchain, tmp_path
):
    """llama.cpp loads such an adapter, and answers as the base does."""
    base = lora_base_of("mt5")
    trained(base, "mt5", tmp_path / "lora", target_modules=["relative_attention_bias", "q"])

    with pytest.raises(UnsupportedError, match=r"no adapter to `.+attn_rel_b\.weight`"):
        export_lora(LoraRequest(tmp_path / "lora", base, tmp_path / "x.gguf"), toolchain)


@pytest.mark.parametrize(
    "name",
    [
        "position_embd", "token_types", "per_layer_model_proj", "altup_proj", "altup_unembd_proj",
        "blk.0.altup_router", "blk.1.ffn_latent_down", "cls", "cls.output",
    ],
)  # fmt: skip
def test_weights_that_no_graph_adapts_are_refused(name):
    import torch

    product = Product(torch.ones(2, 8), torch.ones(8, 2), frozenset({"module.weight"}))

    with pytest.raises(UnsupportedError, match=rf"no adapter to `{name}\.weight`"):
        settled(f"{name}.weight", product)


def test_an_alora_keeps_its_invocation_tokens(lora_base_of, toolchain, tmp_path):
    from tests.reference import read_gguf

    base = lora_base_of("llama")
    trained(base, "llama", tmp_path / "lora", alora_invocation_tokens=[7, 8])

    path = export_lora(LoraRequest(tmp_path / "lora", base, tmp_path / "x.gguf"), toolchain).path

    with imported(toolchain):
        metadata, _ = read_gguf(path)
    assert metadata["adapter.alora.invocation_tokens"][1] == [7, 8]


def test_a_pair_without_numbers_is_refused(lora_base_of, toolchain, tmp_path):
    import torch

    name = "model.layers.0.self_attn.q_proj"
    adapter = save(
        tmp_path / "lora",
        {
            f"{name}.lora_A.weight": torch.full((2, 64), torch.nan),
            f"{name}.lora_B.weight": torch.ones(64, 2),
        },
    )

    with pytest.raises(AdapterError, match="NaN or infinite"):
        export_lora(LoraRequest(adapter, lora_base_of("llama"), tmp_path / "x.gguf"), toolchain)


def test_a_kept_conversion_is_used_again_and_a_damaged_one_is_made_anew(lora_base_of, tmp_path):
    base = lora_base_of("llama")
    trained(base, "llama", tmp_path / "lora", target_modules=["q_proj"])

    path = adapter_gguf(tmp_path / "lora", base, cache=tmp_path / "cache")
    whole, made = path.read_bytes(), path.stat().st_mtime_ns
    assert adapter_gguf(tmp_path / "lora", base, cache=tmp_path / "cache") == path
    assert path.stat().st_mtime_ns == made
    path.write_bytes(whole[:-4] + b"\xff\xff\xff\xff")

    assert adapter_gguf(tmp_path / "lora", base, cache=tmp_path / "cache") == path
    assert path.read_bytes() == whole


@pytest.mark.parametrize("feature", ["plain", "head"])
def test_where_llamacpps_own_converter_is_right_the_products_are_the_same(
    lora_base_of, toolchain, tmp_path, feature
):
    """Its runtime scale is alpha / rank, ours 1."""
    from tests.reference import read_gguf

    base = lora_base_of("llama")
    trained(base, "llama", tmp_path / "lora", **FEATURES[feature])
    script = toolchain.source / "convert_lora_to_gguf.py"
    argv = [script, "--base", base, "--outfile", tmp_path / "u.gguf", tmp_path / "lora"]
    run_warm(argv).check_returncode()

    path = export_lora(LoraRequest(tmp_path / "lora", base, tmp_path / "x.gguf"), toolchain).path

    with imported(toolchain):
        ours, theirs = (read_gguf(file)[1] for file in (path, tmp_path / "u.gguf"))
    assert ours.keys() == theirs.keys()
    for name, (_, shape, data) in ours.items():
        found, usual = (np.frombuffer(d, np.float32) for d in (data, theirs[name][2]))
        assert shape == theirs[name][1]
        scale = 6 / 4 if name.endswith(".lora_b") else 1
        np.testing.assert_array_equal(found, usual * np.float32(scale))
