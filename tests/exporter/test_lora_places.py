"""Where the pairs of unusual adapters go: one expert's own, and those that add nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from exporter.core.errors import UnsupportedError
from exporter.lora import LoraRequest, export_lora
from exporter.pipeline import export
from exporter.request import ExportRequest
from tests.lora_models import CLOSE, FAR, TOKENS, forward, loaded_base, off, save, trained
from tests.tiny import make_tokenizer

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]


def test_gpt_oss_pairs_of_single_experts_go_into_the_stacks(
    lora_base_of, toolchain, vocabularies_left_out, tmp_path
):
    """The oracle is the base with the sums written into it: no model has such modules."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    base = lora_base_of("gpt_oss")
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


def test_a_pair_that_adds_nothing_is_never_a_reason_to_refuse(lora_base_of, toolchain, tmp_path):
    """all-linear has targets that a task never trains: of Gemma 3n's, some have no place."""
    import torch
    from safetensors.torch import load_file, save_file

    base = lora_base_of("mt5")
    expected = forward(trained(base, "mt5", tmp_path / "lora", target_modules=["q"]))
    weights = tmp_path / "lora" / "adapter_model.safetensors"
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


def test_an_embedders_untrained_pooler_is_no_reason_to_refuse(
    toolchain, vocabularies_left_out, tmp_path
):
    """all-linear has BERT's pooler, which no GGUF has a place for, and a mean never trains."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    torch.manual_seed(0)
    transformers.BertModel(
        transformers.BertConfig(
            vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=128,
        )
    ).save_pretrained(base)  # fmt: skip
    make_tokenizer(base)
    config = LoraConfig(task_type="FEATURE_EXTRACTION", target_modules="all-linear", r=4)
    model = get_peft_model(transformers.BertModel.from_pretrained(base), config)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if values.requires_grad and "pooler" not in name:
                values.add_(torch.randn_like(values) * 0.05)
    model.save_pretrained(tmp_path / "lora")
    request = ExportRequest(((tmp_path / "lora", 1.0),), base, ("F32",), (tmp_path / "x.gguf",))

    export(request, toolchain)
    made = export_lora(LoraRequest(tmp_path / "lora", base, tmp_path / "l.gguf"), toolchain)

    assert made.pairs == 12
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    pairs = load_file(weights)
    pooler = next(name for name in pairs if "pooler" in name and "lora_B" in name)
    save_file(pairs | {pooler: pairs[pooler] + 0.1}, weights)
    with pytest.raises(UnsupportedError, match=r"no place for `pooler\.dense\.weight`"):
        export(replace(request, outputs=(tmp_path / "y.gguf",)), toolchain)


def test_an_untrained_pair_of_a_tied_head_is_left_out_and_a_trained_one_refused(
    lora_base_of, toolchain, tmp_path
):
    from safetensors.torch import load_file, save_file

    base = lora_base_of("gemma2")
    trained(base, "gemma2", tmp_path / "lora", target_modules=["q_proj", "lm_head"])
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    request = LoraRequest(tmp_path / "lora", base, tmp_path / "x.gguf")
    with pytest.raises(UnsupportedError, match="are tied"):
        export_lora(request, toolchain)
    with pytest.raises(UnsupportedError, match=r"no place for `lm_head\.weight`"):
        merge(base, tmp_path, "y.gguf", toolchain)
    pairs = load_file(weights)
    name = "base_model.model.lm_head.lora_B.weight"
    save_file(pairs | {name: pairs[name] * 0}, weights)

    made = export_lora(request, toolchain)
    merge(base, tmp_path, "z.gguf", toolchain)

    assert made.pairs == 2
    assert (tmp_path / "z.gguf").exists()


def merge(base, folder, name, toolchain):
    request = ExportRequest(((folder / "lora", 1.0),), base, ("F32",), (folder / name,))
    export(request, toolchain)
