"""What an adapter's folder records of its training, and the base that it was trained on."""

from __future__ import annotations

import json

import pytest

from exporter.core.events import Note, Warn
from exporter.inputs.adapter import open_adapter
from exporter.inputs.lazy_tensor import read_tensor
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.inputs.quantized.nf4_fake_quant import nf4_fake_quantize
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import WeightedAdapter
from exporter.merge.qlora import as_trained_on, linear_weights, trained_on
from tests.support.quantized import BNB
from tests.support.raw import edit_json, write_adapter, write_base
from tests.support.tiny import make_adapter, make_base

PEFT_CARD = """
The following `bitsandbytes` quantization config was used during training:
- quant_method: bitsandbytes
- load_in_8bit: False
- load_in_4bit: {four}
- bnb_4bit_quant_type: {kind}
- bnb_4bit_use_double_quant: {nested}
- bnb_4bit_compute_dtype: bfloat16
"""
AXOLOTL_CARD = """
<details><summary>See axolotl config</summary>

```yaml
base_model: org/base
load_in_8bit: false
load_in_4bit: true
adapter: qlora
```
"""


def recorded(folder, **config):
    return trained_on(open_adapter(write_adapter(folder, **config)))


@pytest.mark.parametrize(
    ("name", "nested"), [("unsloth/Llama-3.2-1B-bnb-4bit", True), ("org/Llama-3.2-1B", None)]
)
def test_the_bases_name_tells(tmp_path, name, nested):
    found = recorded(tmp_path / "lora", base_model_name_or_path=name)

    assert (found and found.double_quant) == nested


@pytest.mark.parametrize("settings", [BNB, BNB | {"bnb_4bit_use_double_quant": True}])
def test_a_local_bases_config_tells(tmp_path, settings):
    base = write_base(tmp_path / "base")
    edit_json(base / "config.json", quantization_config=settings)

    found = recorded(tmp_path / "lora", base_model_name_or_path="../base")

    assert found.kind == "nf4"
    assert found.double_quant is settings["bnb_4bit_use_double_quant"]


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("README.md", PEFT_CARD.format(four=True, kind="nf4", nested=False), ("nf4", False)),
        ("README.md", PEFT_CARD.format(four=True, kind="fp4", nested=True), ("fp4", True)),
        ("README.md", PEFT_CARD.format(four=False, kind="fp4", nested=True), None),
        ("README.md", AXOLOTL_CARD, ("nf4", True)),
        ("README.md", AXOLOTL_CARD.replace("4bit: true", "4bit: false"), None),
        ("README.md", "How I set load_in_4bit: true and failed", None),
        ("training_args.yaml", "quantization_bit: 4\ndouble_quantization: false", ("nf4", False)),
        ("training_args.yaml", "quantization_bit: 8", None),
        ("training_args.yaml", "quantization_bit: null", None),
    ],
)
def test_a_trainers_note_tells(tmp_path, file, text, expected):
    folder = write_adapter(tmp_path / "lora")
    (folder / file).write_text(text)

    found = trained_on(open_adapter(folder))

    assert (found and (found.kind, found.double_quant)) == expected


def test_the_note_of_the_run_above_a_checkpoint_tells(tmp_path):
    folder = write_adapter(tmp_path / "run" / "checkpoint-5")
    (tmp_path / "run" / "README.md").write_text(AXOLOTL_CARD)

    assert str(tmp_path / "run" / "README.md") in trained_on(open_adapter(folder)).because


def test_a_pickle_of_the_trainers_settings_is_not_touched(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    (folder / "training_args.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")

    assert trained_on(open_adapter(folder)) is None


def trained_in_four_bits(tmp_path, **config):
    adapter = write_adapter(tmp_path / "lora", base_model_name_or_path="org/x-bnb-4bit", **config)
    return open_checkpoint(write_base(tmp_path / "base")), open_adapter(adapter)


def test_none_leaves_the_base_and_says_nothing(tmp_path):
    checkpoint, adapter = trained_in_four_bits(tmp_path)
    said = []

    assert as_trained_on(checkpoint, [adapter], mode="none", report=said.append) is checkpoint
    assert said == []


def test_fp4_is_said_aloud_and_left(tmp_path):
    checkpoint, adapter = trained_in_four_bits(tmp_path)
    (adapter.folder / "README.md").write_text(PEFT_CARD.format(four=True, kind="fp4", nested=False))
    said = []

    assert as_trained_on(checkpoint, [adapter], report=said.append) is checkpoint
    assert isinstance(said[0], Warn)
    assert "fp4" in said[0].message


@pytest.mark.trained
def test_auto_says_what_it_does_and_how_to_undo_it(tiny_base, tmp_path):
    adapter = open_adapter(write_adapter(tmp_path / "a", base_model_name_or_path="o/x-bnb-4bit"))
    said = []

    made = as_trained_on(open_checkpoint(tiny_base), [adapter], report=said.append)

    assert isinstance(said[0], Note)
    assert said[0].message.startswith("21 weights of the base as NF4 with nested scales")
    assert "because it was trained on 'o/x-bnb-4bit'" in said[0].message
    assert "--base-roundtrip none" in said[0].message
    assert made.fake_quantized_as == "nf4 nested"


@pytest.mark.trained
@pytest.mark.parametrize("tied", [False, True])
def test_only_the_projections_are_quantized(tmp_path, tied):
    base = make_base(tmp_path / "base", tie_word_embeddings=tied)

    weights = linear_weights(open_checkpoint(base), None)

    assert {name.rpartition("_proj")[1] for name in weights} == {"_proj"}
    assert len(weights) == 21
    assert set(weights.values()) == {False}


@pytest.mark.trained
def test_gpt2s_weights_are_turned_first(tmp_path):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=64, n_head=2, n_layer=1, vocab_size=64, n_positions=64,
                        bos_token_id=1, eos_token_id=2)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    plain = open_checkpoint(tmp_path / "base")

    made = as_trained_on(plain, [], mode="nf4")

    name = "transformer.h.0.mlp.c_fc.weight"
    weight = read_tensor(plain.tensors[name])
    expected = nf4_fake_quantize(weight.T.contiguous(), double_quant=True).T
    assert torch.equal(read_tensor(made.tensors[name]), expected)
    assert not torch.equal(expected, nf4_fake_quantize(weight, double_quant=True))
    changed = [n for n, t in made.tensors.items() if t is not plain.tensors[n]]
    assert len(changed) == 4


@pytest.mark.trained
def test_an_adapter_trained_on_nf4_fits_that_base_and_no_other(tmp_path):
    """The model that was trained is base-as-quantized + adapter: its logits are the oracle."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = make_base(tmp_path / "base", dtype="float32")
    adapter = make_adapter(tmp_path / "lora", base)
    plain, spec = open_checkpoint(base), open_adapter(adapter)
    ids = torch.arange(3, 60)[None]

    def load(tensors):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.load_state_dict(tensors)
        return model.eval()

    nf4 = as_trained_on(plain, [spec], mode="nf4")
    trained = PeftModel.from_pretrained(
        load({name: read_tensor(t) for name, t in nf4.tensors.items()}), adapter
    ).eval()
    with torch.inference_mode():
        expected = trained(ids).logits
        differences = {}
        for name, checkpoint in (("nf4", nf4), ("plain", plain)):
            merged = MergedTensors(plan_merge(checkpoint, [WeightedAdapter(spec)]))
            model = load({key: merged.read(key) for key in merged.names})
            differences[name] = float((model(ids).logits - expected).abs().max())

    assert differences["nf4"] < 1e-4 * float(expected.abs().max())
    assert differences["plain"] > 100 * differences["nf4"]


def test_a_base_that_is_published_quantized_is_not_quantized_again(tmp_path):
    checkpoint, adapter = trained_in_four_bits(tmp_path)
    edit_json(checkpoint.folder / "config.json", quantization_config={"quant_method": "gptq"})
    base, said = open_checkpoint(checkpoint.folder), []

    assert as_trained_on(base, [adapter], mode="nf4", report=said.append) is base
    assert isinstance(said[0], Note)


def test_a_base_that_bitsandbytes_quantized_is_not_quantized_again(tmp_path):
    from tests.support.quantized import GOOD, raw_quantized

    base = open_checkpoint(raw_quantized(tmp_path / "base", json.dumps(GOOD).encode()))
    adapter = open_adapter(write_adapter(tmp_path / "a", base_model_name_or_path="o/x-bnb-4bit"))

    for mode in ("auto", "nf4"):
        assert as_trained_on(base, [adapter], mode=mode) is base
