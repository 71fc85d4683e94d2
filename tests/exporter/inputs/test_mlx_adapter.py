"""Adapters of mlx-lm: the layouts its versions wrote, against the PEFT twin or the definition."""

from __future__ import annotations

import json

import pytest

from exporter.core.errors import AdapterError, UnsupportedError
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.formats.gguf_lora import LoraRequest, export_lora
from exporter.formats.gguf_lora_cache import adapter_gguf
from exporter.formats.vllm import NamedAdapter, VllmRequest, export_for_vllm
from exporter.inputs.adapter import open_adapter
from exporter.inputs.adapter_spec import scaling_of
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import WeightedAdapter
from tests.support.mlx_models import mlx_twin
from tests.support.raw import CONFIG, edit_json, write_safetensors
from tests.support.reference import read_gguf
from tests.support.tiny import make_adapter

pytestmark = [pytest.mark.trained, pytest.mark.filterwarnings("ignore")]

Q_PROJ = "model.layers.0.self_attn.q_proj"
PARAMETERS = {"rank": 2, "scale": 20.0, "dropout": 0.0}


def write_mlx(folder, tensors=None, **config):
    """An adapter of zeros on one q_proj of width 8."""
    folder.mkdir(parents=True)
    settings = {"model": "org/base", "fine_tune_type": "lora", "lora_parameters": PARAMETERS}
    kept = {key: value for key, value in (settings | config).items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(kept))
    write_safetensors(
        folder / "adapters.safetensors",
        tensors or {f"{Q_PROJ}.lora_a": (8, 2), f"{Q_PROJ}.lora_b": (2, 8)},
    )
    return folder


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_becomes_the_gguf_of_its_peft_twin(
    tmp_path, tiny_base, tiny_adapter, toolchain, dora
):
    peft = make_adapter(tmp_path / "dora", tiny_base, use_dora=True) if dora else tiny_adapter
    made = []
    for adapter in (peft, mlx_twin(tmp_path / "mlx", peft)):
        output = tmp_path / f"{adapter.name}.gguf"
        request = ExportRequest(((adapter, 1.0),), None, ("Q8_0",), (output,), verify=True)
        (verified,) = export(request, toolchain).verified
        made.append((read_gguf(output)[1], [check.problems for check in verified.checks]))

    (peft_bytes, _), (mlx_bytes, problems) = made
    assert mlx_bytes == peft_bytes
    assert not any(problems)


def test_a_gguf_adapter_and_vllms_folder_are_those_of_the_peft_twin(
    tmp_path, tiny_base, tiny_adapter, toolchain
):
    from safetensors.torch import load_file

    twin = mlx_twin(tmp_path / "mlx", tiny_adapter)
    ggufs, folders = [], []
    for number, adapter in enumerate((tiny_adapter, twin)):
        output = tmp_path / f"{number}.gguf"
        export_lora(LoraRequest(adapter, tiny_base, output), toolchain)
        ggufs.append(read_gguf(output)[1])
        folder = tmp_path / str(number)
        export_for_vllm(VllmRequest((NamedAdapter("a", adapter),), folder))
        folders.append(load_file(folder / "adapters" / "a" / "adapter_model.safetensors"))

    assert ggufs[0] == ggufs[1]
    assert folders[0].keys() == folders[1].keys()
    assert all((folders[0][name] == folders[1][name]).all() for name in folders[0])


def test_chat_and_serve_convert_it_once_as_they_do_its_peft_twin(tmp_path, tiny_base, tiny_adapter):
    twin = mlx_twin(tmp_path / "mlx", tiny_adapter)
    cache = tmp_path / "cache"

    ours, theirs = (adapter_gguf(one, tiny_base, cache=cache) for one in (twin, tiny_adapter))

    assert ours != theirs
    assert read_gguf(ours)[1] == read_gguf(theirs)[1]


def test_peft_applies_it_unmerged_as_it_applies_the_twin(tmp_path, tiny_base, tiny_adapter):
    """What the full verification compares with."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from exporter.inputs.peft_folder import peft_folder

    twin = open_adapter(mlx_twin(tmp_path / "mlx", tiny_adapter))
    ids, logits = torch.tensor([[1, 50, 60, 70]]), []
    with peft_folder(twin) as written:
        for folder in (tiny_adapter, written):
            model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
            with torch.no_grad():
                logits.append(PeftModel.from_pretrained(model, folder)(ids).logits)

    assert torch.equal(*logits)


def test_the_embedding_of_a_tied_base_changes_at_both_ends(tmp_path):
    """mlx-lm asks the adapted embedding for the logits, too: its `as_linear`."""
    import torch
    from safetensors.torch import save_file

    base, mlx = tmp_path / "base", tmp_path / "mlx"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({**CONFIG, "tie_word_embeddings": True}))
    table = torch.randn(16, 8)
    save_file({"model.embed_tokens.weight": table}, base / "model.safetensors")
    write_mlx(mlx)
    a, b = torch.randn(16, 2), torch.randn(2, 8)
    save_file(
        {"model.embed_tokens.lora_a": a, "model.embed_tokens.lora_b": b},
        mlx / "adapters.safetensors",
    )

    plan = plan_merge(open_checkpoint(base), [WeightedAdapter(open_adapter(mlx))])

    merged = MergedTensors(plan).read("model.embed_tokens.weight")
    torch.testing.assert_close(merged, table + 20 * a @ b, atol=1e-4, rtol=1e-5)
    assert plan.names == ("model.embed_tokens.weight",)
    assert "tie_word_embeddings" not in plan.config


@pytest.mark.parametrize("old", [False, True], ids=["stacked", "in one matrix"])
@pytest.mark.parametrize(
    ("kind", "parent", "parts"),
    [
        ("qwen3_moe", "mlp", {"gate_proj": "gate_proj", "down_proj": "down_proj"}),
        ("mixtral", "block_sparse_moe", {"gate_proj": "w1", "down_proj": "w2"}),
    ],
)
def test_experts_matrices_go_to_each_expert(tmp_path, old, kind, parent, parts):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    experts, width, inner, rank = 3, 8, 6, 2
    sizes = {"gate_proj": (inner, width), "down_proj": (width, inner)}
    weights, pairs, expected = {}, {}, {}
    for part, spelled in parts.items():
        n_out, n_in = sizes[part]
        a, b = torch.randn(experts, rank, n_in), torch.randn(experts, n_out, rank)
        stem = f"model.layers.0.{parent}"
        pairs[f"{stem}.switch_mlp.{part}.lora_a"] = a.reshape(-1, n_in).clone() if old else a
        pairs[f"{stem}.switch_mlp.{part}.lora_b"] = b
        for expert in range(experts):
            name = f"{stem}.experts.{expert}.{spelled}.weight"
            weights[name] = torch.randn(n_out, n_in)
            expected[name] = weights[name] + 20 * b[expert] @ a[expert]
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({**CONFIG, "model_type": kind}))
    save_file(weights, base / "model.safetensors")
    mlx = write_mlx(tmp_path / "mlx")
    save_file(pairs, mlx / "adapters.safetensors")

    plan = plan_merge(open_checkpoint(base), [WeightedAdapter(open_adapter(mlx))])

    tensors = MergedTensors(plan)
    for name, values in expected.items():
        torch.testing.assert_close(tensors.read(name), values, atol=1e-4, rtol=1e-5)


def test_a_full_fine_tune_of_mlx_replaces_the_bases_tensors(tmp_path, tiny_base):
    from safetensors.torch import load_file, save_file

    name = "model.layers.2.mlp.up_proj.weight"
    values = load_file(tiny_base / "model.safetensors")[name] * 2
    folder = write_mlx(tmp_path / "mlx", fine_tune_type="full", lora_parameters=None)
    save_file({name: values}, folder / "adapters.safetensors")

    plan = plan_merge(open_checkpoint(tiny_base), [WeightedAdapter(open_adapter(folder))])

    assert list(plan.changes) == [name]
    assert (MergedTensors(plan).read(name) == values.float()).all()


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 20),
        ({"fine_tune_type": None}, 20),
        ({"lora_parameters": {**PARAMETERS, "alpha": 16}, "num_layers": 16}, 20),
        # before June 2024, when alpha counted
        ({"fine_tune_type": None, "lora_layers": 16,
          "lora_parameters": {**PARAMETERS, "scale": 10.0, "alpha": 16}}, 80),
    ],
    ids=["today", "without a type", "alpha unused", "alpha used"],
)  # fmt: skip
def test_the_scale_is_the_one_that_its_version_trained_with(tmp_path, config, scale):
    adapter = open_adapter(write_mlx(tmp_path / "mlx", **config))

    assert scaling_of(adapter, adapter.pairs[0]).value == scale
    assert adapter.base == "org/base"


def test_where_two_versions_read_one_config_differently_both_scales_are_said(tmp_path):
    parameters = {**PARAMETERS, "scale": 10.0, "alpha": 16}
    folder = write_mlx(
        tmp_path / "mlx", fine_tune_type=None, use_dora=False, lora_layers=16,
        lora_parameters=parameters,
    )  # fmt: skip
    said = []

    adapter = open_adapter(folder, report=said.append)

    assert scaling_of(adapter, adapter.pairs[0]).value == 10
    assert any("--scale 8" in event.message for event in said)


def test_an_older_adapter_of_mlx_vlm_is_read_with_its_alpha_and_a_warning(tmp_path):
    folder = tmp_path / "mlx"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"rank": 2, "alpha": 0.5, "dropout": 0}))
    stem = f"language_model.{Q_PROJ}"
    write_safetensors(folder / "adapters.safetensors", {f"{stem}.A": (8, 2), f"{stem}.B": (2, 8)})
    said = []

    adapter = open_adapter(folder, report=said.append)

    assert scaling_of(adapter, adapter.pairs[0]).value == 0.5
    assert any("--scale 0.5" in event.message for event in said)


def test_weights_of_mlx_without_a_config_are_told_what_to_write(tmp_path):
    folder = write_mlx(tmp_path / "mlx")
    (folder / "adapter_config.json").unlink()

    with pytest.raises(AdapterError) as caught:
        open_adapter(folder)

    assert '"lora_parameters"' in caught.value.hint


def test_a_numbered_checkpoint_is_named_by_its_file(tmp_path):
    folder = write_mlx(tmp_path / "mlx")
    numbered = folder / "0000100_adapters.safetensors"
    write_safetensors(numbered, {f"{Q_PROJ}.lora_a": (8, 2), f"{Q_PROJ}.lora_b": (2, 4)})

    assert open_adapter(numbered).pairs[0].b.shape == (4, 2)
    assert open_adapter(folder / "adapters.safetensors").pairs[0].b.shape == (8, 2)


@pytest.mark.parametrize(
    ("tensors", "config", "said"),
    [
        (None, {"lora_parameters": None, "num_layers": 4}, "gives no rank and scale"),
        (None, {"lora_parameters": {"rank": 2}}, "gives no rank and scale"),
        (None, {"lora_parameters": {"rank": 2, "scale": "x"}}, "gives no rank and scale"),
        (None, {"fine_tune_type": "prefix"}, "'prefix'"),
        ({f"{Q_PROJ}.lora_a": (8, 2)}, {}, "lora_B.weight` is missing"),
        ({f"{Q_PROJ}.weight": (8, 2)}, {}, r"q_proj\.weight"),
        ({"model.embed_tokens.m": (16,)}, {"fine_tune_type": "dora"}, "each token"),
        (
            {"model.layers.0.mlp.switch_mlp.up_proj.lora_a": (7, 8),
             "model.layers.0.mlp.switch_mlp.up_proj.lora_b": (3, 6, 2)},
            {}, "each of 3 experts",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(tmp_path, tensors, config, said):
    folder = write_mlx(tmp_path / "mlx", tensors, **config)

    with pytest.raises((AdapterError, UnsupportedError), match=said) as caught:
        open_adapter(folder)

    assert caught.value.hint


def test_ranks_that_differ_between_config_and_matrices_are_refused(tmp_path):
    adapter = open_adapter(write_mlx(tmp_path / "mlx", lora_parameters={**PARAMETERS, "rank": 4}))

    with pytest.raises(AdapterError, match="says rank 4"):
        scaling_of(adapter, adapter.pairs[0])


def test_a_base_that_mlx_trains_in_another_form_is_refused_with_the_reason(
    tmp_path, tiny_base, tiny_adapter, toolchain
):
    import shutil

    base = shutil.copytree(tiny_base, tmp_path / "base")
    edit_json(base / "config.json", model_type="falcon_h1")
    twin = mlx_twin(tmp_path / "mlx", tiny_adapter)
    request = ExportRequest(((twin, 1.0),), base, ("F16",), (tmp_path / "x.gguf",))

    with pytest.raises(UnsupportedError, match="multiplies") as caught:
        export(request, toolchain)

    assert "mlx_lm.fuse" in caught.value.hint
