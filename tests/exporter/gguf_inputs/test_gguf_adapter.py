"""GGUF adapters as input: merged as the PEFT adapter that they were made of."""

from __future__ import annotations

import shutil

import pytest

from exporter.cli.app import run
from exporter.core.errors import AdapterError, UnsupportedError
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.formats.gguf_lora import LoraRequest, export_lora
from exporter.formats.vllm import NamedAdapter, VllmRequest, export_for_vllm
from exporter.gguf_inputs.placed_adapter import on_base
from exporter.inputs.adapter import open_adapter
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import WeightedAdapter
from tests.support.architectures import make_architecture
from tests.support.lora_models import saved
from tests.support.mlx_models import mlx_twin
from tests.support.raw import write_tiny_gguf
from tests.support.reference import read_gguf
from tests.support.tiny import make_adapter, make_base, make_tokenizer
from tests.support.warm import run_warm

pytestmark = [pytest.mark.trained, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def gguf_adapter(tiny_base, tiny_adapter, toolchain, tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "tiny.lora.gguf"
    export_lora(LoraRequest(tiny_adapter, tiny_base, path), toolchain)
    return path


def exported(adapter, base, toolchain, output, quant="Q8_0"):
    request = ExportRequest(((adapter, 1.0),), base, (quant,), (output,), verify=True)
    (verified,) = export(request, toolchain).verified
    assert not any(check.problems for check in verified.checks)
    return read_gguf(output)[1]


def test_ours_becomes_the_gguf_of_the_adapter_it_was_made_of(
    gguf_adapter, tiny_base, tiny_adapter, toolchain, tmp_path
):
    twin = exported(tiny_adapter, tiny_base, toolchain, tmp_path / "peft.gguf")

    assert exported(gguf_adapter, tiny_base, toolchain, tmp_path / "gguf.gguf") == twin


CASES = [
    ("llama", {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
    ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    ("phi3", {"target_modules": "all-linear"}),
    ("gpt2", {"target_modules": ["c_attn", "attn.c_proj", "c_fc"]}),
    ("falcon", {"target_modules": "all-linear"}),
    ("bloom", {"target_modules": "all-linear"}),
    ("gpt_neox", {"target_modules": "all-linear"}),
    ("qwen3_moe", {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    ("mt5", {"target_modules": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]}),
]  # fmt: skip


def merged(base, adapter, toolchain):
    checkpoint = open_checkpoint(base)
    spec = on_base(open_adapter(adapter), checkpoint, toolchain)
    plan = plan_merge(checkpoint, [WeightedAdapter(spec)])
    tensors = MergedTensors(plan)
    return {name: tensors.read(name) for name in plan.changes}


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_every_rearrangement_of_the_converter_is_undone(toolchain, tmp_path, name, settings):
    import torch

    base = make_architecture(name, tmp_path / "base", dtype="float32")
    make_tokenizer(base)
    (base / "tokenizer.json").write_text("{}")
    adapter = saved(base, name, tmp_path / "lora", **settings)
    path = tmp_path / "x.lora.gguf"
    export_lora(LoraRequest(adapter, base, path), toolchain)

    found, expected = merged(base, path, toolchain), merged(base, adapter, toolchain)

    for tensor, values in expected.items():
        torch.testing.assert_close(found.pop(tensor), values, atol=1e-5, rtol=1e-5)
    # experts that were not trained come as zeros
    before = MergedTensors(plan_merge(open_checkpoint(base)))
    assert all(torch.equal(values, before.read(tensor).float()) for tensor, values in found.items())


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_one_that_llamacpps_own_converter_made_is_merged_with_its_alpha(
    tiny_base, tiny_adapter, toolchain, tmp_path, outtype
):
    import torch

    script = toolchain.source / "convert_lora_to_gguf.py"
    path = tmp_path / "u.gguf"
    argv = [script, "--base", tiny_base, "--outfile", path, "--outtype", outtype, tiny_adapter]
    run_warm(argv).check_returncode()

    found, expected = merged(tiny_base, path, toolchain), merged(tiny_base, tiny_adapter, toolchain)

    assert found.keys() == expected.keys()
    before = MergedTensors(plan_merge(open_checkpoint(tiny_base)))
    for name, values in expected.items():
        change = (values - before.read(name).float()).norm()
        assert (found[name] - values).norm() < 0.02 * change, name
    assert not all(torch.equal(found[name], values) for name, values in expected.items())


def test_the_folder_of_one_gguf_adapter_stands_for_it(gguf_adapter):
    said = []

    adapter = open_adapter(gguf_adapter.parent, report=said.append)

    assert (adapter.weights, adapter.name) == (gguf_adapter, "tiny")
    assert any("is a GGUF" in event.message for event in said)


def test_of_two_gguf_adapters_none_is_guessed(gguf_adapter, tmp_path):
    for name in "ab":
        shutil.copy(gguf_adapter, tmp_path / f"{name}.gguf")

    with pytest.raises(AdapterError, match=r"2 GGUF adapters: a\.gguf, b\.gguf"):
        open_adapter(tmp_path)


def test_a_model_is_no_adapter(tmp_path):
    path = write_tiny_gguf(tmp_path / "model.gguf")

    with pytest.raises(AdapterError, match="is a whole model"):
        open_adapter(path)


def test_an_alora_is_refused_as_it_is_from_peft(tiny_base, toolchain, tmp_path):
    peft = make_adapter(tmp_path / "lora", tiny_base, alora_invocation_tokens=[5, 6])
    path = tmp_path / "x.gguf"
    export_lora(LoraRequest(peft, tiny_base, path), toolchain)

    with pytest.raises(UnsupportedError, match=r"alora_invocation_tokens=\[5, 6\]"):
        open_adapter(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 2}, r"nothing there becomes `blk\.2\."),
        ({"intermediate_size": 256}, "is for 256 × 512"),
    ],
)
def test_another_base_is_named_with_what_differs(gguf_adapter, toolchain, tmp_path, changes, said):
    base = make_base(tmp_path / "base", **changes)

    with pytest.raises(AdapterError, match=said) as caught:
        merged(base, gguf_adapter, toolchain)

    assert "--base" in caught.value.hint


def test_another_architecture_is_named(gguf_adapter, toolchain, tmp_path):
    base = make_architecture("qwen2", tmp_path / "base", dtype="float32")
    make_tokenizer(base)

    with pytest.raises(AdapterError, match="adapts a llama, not a qwen2"):
        merged(base, gguf_adapter, toolchain)


def test_a_tied_embedding_is_refused(toolchain, tmp_path):
    untied = make_base(tmp_path / "untied")
    peft = make_adapter(tmp_path / "lora", untied, target_modules=["embed_tokens"])
    path = tmp_path / "x.gguf"
    export_lora(LoraRequest(peft, untied, path), toolchain)
    tied = make_base(tmp_path / "tied", tie_word_embeddings=True)

    with pytest.raises(UnsupportedError, match="are tied"):
        merged(tied, path, toolchain)


def test_vllm_is_not_given_one(gguf_adapter, tmp_path):
    with pytest.raises(UnsupportedError, match="GGUF"):
        export_for_vllm(VllmRequest((NamedAdapter("a", gguf_adapter),), tmp_path / "out"))


@pytest.mark.parametrize("kind", ["gguf", "mlx"])
def test_the_peft_folder_that_is_written_merges_to_the_same(
    gguf_adapter, tiny_base, tiny_adapter, toolchain, tmp_path, kind, capsys
):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    named = gguf_adapter if kind == "gguf" else mlx_twin(tmp_path / "mlx", tiny_adapter)
    folder = tmp_path / "peft"
    command = ["export", str(named), "--base", str(tiny_base), "--to", "peft", "-o", str(folder)]

    assert run([*command, "--dry-run"]) == 0
    assert not folder.exists()
    assert run(command) == 0

    assert "21 pairs" in capsys.readouterr().err
    found, expected = (merged(tiny_base, one, toolchain) for one in (folder, tiny_adapter))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    assert PeftModel.from_pretrained(model, folder)
    assert run(command) == 8  # it exists
    assert run(["export", str(tiny_adapter), "--to", "peft"]) == 3
