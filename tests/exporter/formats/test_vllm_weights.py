"""`--to vllm`: what vLLM makes of the written adapters is what PEFT makes of the trained ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.formats.vllm import NamedAdapter, VllmRequest, export_for_vllm
from exporter.inputs.adapter import open_adapter
from exporter.inputs.adapter_spec import scaling_of
from exporter.inputs.lazy_tensor import read_tensor
from tests.support.raw import edit_json, write_adapter
from tests.support.tiny import make_adapter
from tests.support.vllm_folders import exported

pytestmark = pytest.mark.trained  # vLLM's format is safetensors', of the [export] extra

FLOAT32 = 1e-5  # how far two orders of the same float32 sums put a logit of about 1 to 10
PATTERNS = {"rank_pattern": {"q_proj": 4, "down_proj": 2}, "alpha_pattern": {"up_proj": 48}}

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": PATTERNS,
    "patterns and rslora": {**PATTERNS, "use_rslora": True},
    "alpha by module": {"alpha_pattern": {"up_proj": 48}},
}


def products(folder: Path) -> dict[str, Any]:
    """What each module's weight gains, by PEFT's rules."""
    adapter = open_adapter(folder)
    return {
        pair.module: scaling_of(adapter, pair).value
        * (read_tensor(pair.b).double() @ read_tensor(pair.a).double())
        for pair in adapter.pairs
    }


def as_vllm_reads(folder: Path) -> dict[str, Any]:
    """The same by vLLM's: one `r` and one `lora_alpha` for all, and nothing else of the config."""
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    found = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            assert a.shape[0] == config["r"]
            stem = name.removesuffix(".lora_A.weight")
            b = tensors[f"{stem}.lora_B.weight"]
            found[stem.removeprefix("base_model.model.")] = scale * (b.double() @ a.double())
    return found


@pytest.mark.trained
class TestWeights:
    """Adapters with values, of several kinds."""

    @pytest.fixture(scope="class")
    @staticmethod
    def base(tmp_path_factory):
        from tests.support.tiny import make_base

        return make_base(tmp_path_factory.mktemp("vllm") / "base", dtype="float32")

    @pytest.mark.parametrize("kind", KINDS)
    def test_vllms_rules_give_what_peft_gives(self, kind, base, tmp_path):
        adapter = make_adapter(tmp_path / "a", base, **KINDS[kind])
        folder = exported(tmp_path / "out", adapter) / "adapters" / "a"
        expected, found = products(adapter), as_vllm_reads(folder)

        assert expected.keys() == found.keys()
        for module, product in expected.items():
            assert product.abs().max() > 0
            assert (found[module] - product).abs().max() <= 1e-6 * product.abs().max(), module

    @pytest.mark.parametrize("kind", ["plain", "patterns"])
    def test_peft_loads_the_folder_and_gives_the_same_logits(self, kind, base, tmp_path):
        adapter = make_adapter(tmp_path / "a", base, **KINDS[kind])
        folder = exported(tmp_path / "out", adapter) / "adapters" / "a"
        plain, expected, found = (logits_with(base, lora) for lora in (None, adapter, folder))

        assert (expected - plain).abs().max() > 100 * FLOAT32
        assert (found - expected).abs().max() <= FLOAT32

    def test_a_scale_is_baked_in(self, base, tmp_path):
        import torch

        adapter = make_adapter(tmp_path / "a", base)
        made = VllmRequest((NamedAdapter("a", adapter, 0.3),), tmp_path / "out")
        folder = export_for_vllm(made).path / "adapters" / "a"
        expected, found = products(adapter), as_vllm_reads(folder)

        assert all(torch.allclose(found[name], 0.3 * expected[name]) for name in expected)

    def test_tensors_of_one_rank_are_copied_bit_for_bit(self, base, tmp_path):
        from safetensors.torch import load_file

        adapter = make_adapter(tmp_path / "a", base)
        folder = exported(tmp_path / "out", adapter) / "adapters" / "a"
        one, other = (load_file(place / "adapter_model.safetensors") for place in (adapter, folder))

        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one)

    def test_a_pickled_and_compiled_adapter_becomes_safetensors_of_plain_names(
        self, base, tmp_path
    ):
        import torch
        from safetensors.torch import load_file

        adapter = make_adapter(tmp_path / "a", base)
        expected = products(adapter)
        path = adapter / "adapter_model.safetensors"
        odd = "base_model.model._orig_mod."
        tensors = {
            name.replace("base_model.model.", odd): value for name, value in load_file(path).items()
        }
        torch.save(tensors, adapter / "adapter_model.bin")
        path.unlink()
        folder = exported(tmp_path / "out", adapter) / "adapters" / "a"

        assert not (folder / "adapter_model.bin").exists()
        found = as_vllm_reads(folder)
        assert all(torch.allclose(found[name], expected[name]) for name in expected)


def logits_with(base: Path, adapter: Path | None) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(torch.tensor([[1, 5, 7, 3]])).logits


def test_the_config_is_otherwise_the_trainers(tmp_path):
    adapter = write_adapter(tmp_path / "a", use_rslora=True)
    edit_json(adapter / "adapter_config.json", revision="abc")
    folder = exported(tmp_path / "out", adapter) / "adapters" / "a"
    config = json.loads((folder / "adapter_config.json").read_text())

    assert config["target_modules"] == ["q_proj"]
    assert config["base_model_name_or_path"] == "org/base"
    assert config["lora_alpha"] / config["r"] == pytest.approx(4 / 2**0.5)


def test_modules_that_a_trainer_did_not_list_are_named(tmp_path):
    """vLLM insists on the setting, which mlx-lm's adapters lack."""
    adapter = write_adapter(tmp_path / "a")
    config = json.loads((adapter / "adapter_config.json").read_text())
    del config["target_modules"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    folder = exported(tmp_path / "out", adapter) / "adapters" / "a"

    found = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert found == ["model.layers.0.self_attn.q_proj"]
