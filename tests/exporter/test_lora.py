"""GGUF adapters: llama.cpp's logits against transformers' and peft's unmerged forward."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.convert import imported
from exporter.core.errors import AdapterError, UnsupportedError
from exporter.lora import LoraRequest, export_lora, settled
from exporter.lora_cache import adapter_gguf
from exporter.pipeline import ExportRequest, export
from exporter.products import Product
from tests.architectures import EVERY, make_architecture
from tests.logits import Loaded
from tests.roads import shake
from tests.tiny import make_tokenizer
from tests.warm import run_warm

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

TOKENS = list(range(5, 21))
CLOSE, FAR = 1e-3, 1e-2  # of the largest logit

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


AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"norm_topk_prob": True},
    "gemma3": {"query_pre_attn_scalar": 16},  # the width of a head
}
"""Settings that llama.cpp takes for granted, and transformers' defaults do not have."""


@pytest.fixture
def vocabularies_left_out(toolchain, monkeypatch):
    """The converter knows a byte-pair tokenizer only by the hash of a published one."""
    with imported(toolchain):
        from conversion import load_all_models
        from conversion.base import TextModel

        def leave_out(self: Any) -> None:
            self.gguf_writer.add_tokenizer_model("no_vocab")
            self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

        load_all_models()
        for module in [m for name, m in sys.modules.items() if name.startswith("conversion.")]:
            for kind in vars(module).values():
                if isinstance(kind, type) and issubclass(kind, TextModel):
                    monkeypatch.setattr(kind, "set_vocab", leave_out)
        yield


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = make_architecture(
                name, tmp_path_factory.mktemp(name) / "base", dtype="float32"
            )
            make_tokenizer(made[name])
            (made[name] / "tokenizer.json").write_text("{}")
            config = made[name] / "config.json"
            settings = json.loads(config.read_text()) | AS_PUBLISHED.get(name, {})
            config.write_text(json.dumps(settings))
        return made[name]

    return make


def trained(base: Path, name: str, folder: Path, **settings: Any) -> Any:
    """An adapter with random values, saved; the model that holds it, unmerged, in float32."""
    import torch
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model

    made = EVERY[name]
    kind = getattr(transformers, made.auto)
    given = {"r": 4, "lora_alpha": 6, "task_type": made.task, "target_modules": made.linear}
    torch.manual_seed(2)
    model = get_peft_model(
        kind.from_pretrained(base, dtype=torch.float32), LoraConfig(**given | settings)
    )
    shake(model)
    model.save_pretrained(folder)
    fresh = kind.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(fresh, folder).eval()


def forward(model: Any) -> np.ndarray[Any, Any]:
    import torch

    ids = torch.tensor([TOKENS])
    extra = {"decoder_input_ids": torch.tensor([[0]])} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **extra).logits[0].numpy()


def off(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """The largest difference, as a part of the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def loaded_base(base: Path, toolchain: Any, folder: Path) -> Loaded:
    export(ExportRequest((), base, ("F32",), (folder / "base.gguf",)), toolchain)
    return Loaded(toolchain, folder / "base.gguf")


@pytest.mark.parametrize(("name", "feature"), CASES)
def test_llamacpp_computes_what_peft_does_unmerged(
    base_of, toolchain, vocabularies_left_out, tmp_path, name, feature
):
    base = base_of(name)
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


def test_a_scale_is_in_the_file_and_multiplies_with_the_servers(base_of, toolchain, tmp_path):
    base = base_of("llama")
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


def save(folder: Path, tensors: dict[str, Any], **config: Any) -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 5, "use_rslora": True} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(
        {f"base_model.model.{name}": values.contiguous() for name, values in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


@pytest.mark.parametrize(
    ("name", "module", "rows"),
    [
        ("mixtral", "model.layers.1.block_sparse_moe.experts.2.w1", 96),
        ("qwen3_moe", "model.layers.1.mlp.experts.2.gate_proj", 48),
    ],
)
def test_one_expert_of_transformers_4_goes_into_its_stack_and_the_others_stay(
    base_of, toolchain, vocabularies_left_out, tmp_path, name, module, rows
):
    """The oracle is the base with the sum written into it: transformers 5 has no such module."""
    import shutil

    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    base = base_of(name)
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


def test_gpt_oss_pairs_of_single_experts_go_into_the_stacks(
    base_of, toolchain, vocabularies_left_out, tmp_path
):
    """The oracle is the base with the sums written into it: no model has such modules."""
    import shutil

    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    base = base_of("gpt_oss")
    shutil.copytree(base, tmp_path / "sum")
    weights = load_file(base / "model.safetensors")
    experts, tensors = "model.layers.1.mlp.experts", {}
    torch.manual_seed(3)
    for part, place in (("gate_up", 2), ("down", 2), ("down", 0)):
        stack = weights[f"{experts}.{part}_proj"]  # (experts, in, out)
        a, b = torch.randn(2, stack.shape[1]), torch.randn(stack.shape[2], 2)
        tensors[f"{experts}.{part}_projs.{place}.lora_A.weight"] = a
        tensors[f"{experts}.{part}_projs.{place}.lora_B.weight"] = b
        stack[place] += 5 / 2**0.5 * (b @ a).T
    adapter = save(tmp_path / "lora", tensors)
    save_file(weights, tmp_path / "sum" / "model.safetensors", metadata={"format": "pt"})
    kind = transformers.AutoModelForCausalLM
    expected = forward(kind.from_pretrained(tmp_path / "sum", dtype=torch.float32).eval())

    path = export_lora(LoraRequest(adapter, base, tmp_path / "x.gguf"), toolchain).path
    model = loaded_base(base, toolchain, tmp_path)

    assert off(model.logits(TOKENS, adapter=model.adapter(path)), expected) < CLOSE
    assert off(model.logits(TOKENS), expected) > FAR
    model.close()


def test_a_pair_that_adds_nothing_is_never_a_reason_to_refuse(base_of, toolchain, tmp_path):
    """all-linear has targets that a task never trains: of Gemma 3n's, some have no place."""
    import torch

    base = base_of("mt5")
    expected = forward(trained(base, "mt5", tmp_path / "lora", target_modules=["q"]))
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    module = "base_model.model.encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    untrained = {
        f"{module}.lora_embedding_A": torch.randn(4, 32),
        f"{module}.lora_embedding_B": torch.zeros(4, 4),
    }
    save_file(load_file(weights) | untrained, weights)

    path = export_lora(LoraRequest(tmp_path / "lora", base, tmp_path / "x.gguf"), toolchain).path
    model = loaded_base(base, toolchain, tmp_path)

    found = model.logits(TOKENS, adapter=model.adapter(path), encoder=True)
    assert off(found, expected) < CLOSE
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
def test_what_is_more_than_pairs_is_refused_with_the_reason(base_of, toolchain, tmp_path, case):
    settings, reason = REFUSED[case]
    trained(base_of("llama"), "llama", tmp_path / "lora", **settings)

    with pytest.raises(UnsupportedError, match=reason) as caught:
        export_lora(
            LoraRequest(tmp_path / "lora", base_of("llama"), tmp_path / "x.gguf"), toolchain
        )

    assert "--to lora" in caught.value.hint
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("end", ["lm_head", "embed_tokens"])
def test_tied_ends_are_refused(base_of, toolchain, tmp_path, end):
    base = base_of("gemma3")
    trained(base, "gemma3", tmp_path / "lora", target_modules=[end])

    with pytest.raises(UnsupportedError, match="are tied"):
        export_lora(LoraRequest(tmp_path / "lora", base, tmp_path / "x.gguf"), toolchain)


def test_an_architecture_whose_graph_passes_adapters_over_is_refused(base_of, toolchain, tmp_path):
    base = base_of("deepseek_v3")
    trained(base, "deepseek_v3", tmp_path / "lora", target_modules=["o_proj"])

    with pytest.raises(UnsupportedError, match="without looking for adapters"):
        export_lora(LoraRequest(tmp_path / "lora", base, tmp_path / "x.gguf"), toolchain)


def test_a_table_that_llamacpp_looks_up_without_its_adapter_is_refused(
    base_of, toolchain, tmp_path
):
    """llama.cpp loads such an adapter, and answers as the base does."""
    base = base_of("mt5")
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


def test_an_alora_keeps_its_invocation_tokens(base_of, toolchain, tmp_path):
    from tests.reference import read_gguf

    base = base_of("llama")
    trained(base, "llama", tmp_path / "lora", alora_invocation_tokens=[7, 8])

    path = export_lora(LoraRequest(tmp_path / "lora", base, tmp_path / "x.gguf"), toolchain).path

    with imported(toolchain):
        metadata, _ = read_gguf(path)
    assert metadata["adapter.alora.invocation_tokens"][1] == [7, 8]


def test_a_pair_without_numbers_is_refused(base_of, toolchain, tmp_path):
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
        export_lora(LoraRequest(adapter, base_of("llama"), tmp_path / "x.gguf"), toolchain)


def test_a_kept_conversion_is_used_again_and_a_damaged_one_is_made_anew(base_of, tmp_path):
    base = base_of("llama")
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
    base_of, toolchain, tmp_path, feature
):
    """Its runtime scale is alpha / rank, ours 1."""
    from tests.reference import read_gguf

    base = base_of("llama")
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
