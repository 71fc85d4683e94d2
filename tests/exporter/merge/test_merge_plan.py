from __future__ import annotations

from pathlib import Path

import pytest

from exporter.core.errors import AdapterError, UnsupportedError
from exporter.inputs.adapter import open_adapter
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import WeightedAdapter, describe
from tests.support.raw import write_adapter, write_base, write_safetensors

Q = "model.layers.0.self_attn.q_proj"


def plan(base, adapter):
    return plan_merge(open_checkpoint(base), [WeightedAdapter(open_adapter(adapter))])


def test_every_pair_is_resolved_onto_its_weight(tmp_path):
    found = plan(write_base(tmp_path / "base"), write_adapter(tmp_path / "lora"))

    assert list(found.changes) == [f"{Q}.weight"]
    assert describe(found).startswith("1 of 2 tensors changed")


def test_a_base_saved_without_its_head_is_matched_too(tmp_path):
    base = write_base(tmp_path / "base")
    write_safetensors(base / "model.safetensors", {f"{Q}.weight".removeprefix("model."): (8, 8)})

    found = plan(base, write_adapter(tmp_path / "lora"))

    assert list(found.changes) == ["layers.0.self_attn.q_proj.weight"]


def test_another_bases_shape_is_refused_with_both_shapes_and_the_right_base(tmp_path):
    with pytest.raises(AdapterError) as caught:
        plan(write_base(tmp_path / "base", width=8), write_adapter(tmp_path / "lora", width=16))

    assert f"`{Q}.weight` is [8, 8] in the base and [16, 16] in the adapter" in caught.value.message
    assert "'org/base'" in caught.value.hint


def test_many_misfits_are_counted_and_the_first_few_shown(tmp_path):
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "lora")
    modules = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(5)]
    write_safetensors(base / "model.safetensors", {f"{m}.weight": (8, 8) for m in modules})
    write_safetensors(
        adapter / "adapter_model.safetensors",
        {
            f"base_model.model.{m}.lora_{half}.weight": shape
            for m in modules
            for half, shape in (("A", (2, 4)), ("B", (4, 2)))
        },
    )

    with pytest.raises(AdapterError, match="and 2 more"):
        plan(base, adapter)


@pytest.mark.trained
def test_a_target_the_base_lacks_is_named_and_counted(tmp_path):
    base = write_base(tmp_path / "base")
    write_safetensors(
        base / "model.safetensors", {"model.layers.0.self_attn.v_proj.weight": (8, 8)}
    )

    with pytest.raises(AdapterError, match=rf"`{Q}`.*1 of 1 modules are missing"):
        plan(base, write_adapter(tmp_path / "lora"))


def test_two_pairs_for_one_weight_are_refused(tmp_path):
    """`layers.0…` and `model.layers.0…` would both land on the same tensor."""
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "lora")
    write_safetensors(
        adapter / "adapter_model.safetensors",
        {
            f"base_model.model.{module}.lora_{half}.weight": shape
            for module in (Q, Q.removeprefix("model."))
            for half, shape in (("A", (2, 8)), ("B", (8, 2)))
        },
    )

    with pytest.raises(AdapterError, match=rf"two of the adapter's modules land on `{Q}.weight`"):
        plan(base, adapter)


def test_no_adapter_changes_nothing(tmp_path):
    found = plan_merge(open_checkpoint(write_base(tmp_path / "base")))

    assert found.changes == {}
    assert describe(found) == "no adapter: 2 tensors as they are"


def refused(base: Path, adapter: Path) -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        plan(base, adapter)
    return caught.value


def test_the_hint_never_names_the_base_that_was_given(tmp_path):
    base = write_base(tmp_path / "models--org--base" / "snapshots" / "abc", width=8)
    by_repo = write_adapter(tmp_path / "a", width=16)
    by_path = write_adapter(tmp_path / "b", width=16, base_model_name_or_path=str(base))

    for adapter in (by_repo, by_path):
        error = refused(base, adapter)
        assert f"the adapter does not fit `{base}`" in error.message
        assert "a changed copy" in error.hint
        assert "pass that as --base" not in error.hint


def test_a_folder_of_the_same_name_may_be_another_model(tmp_path):
    error = refused(write_base(tmp_path / "base"), write_adapter(tmp_path / "lora", width=16))

    assert f"is `{tmp_path / 'base'}` that model, unchanged?" in error.hint


def test_another_base_is_named_in_the_hint(tmp_path):
    error = refused(write_base(tmp_path / "other"), write_adapter(tmp_path / "lora", width=16))

    assert error.hint == "it was trained on 'org/base': pass that as --base"


@pytest.mark.trained
def test_a_missing_module_that_was_never_trained_is_passed_over(tmp_path):
    """all-linear adapts a BERT's pooler, whose B stays zero where only the mean is used."""
    import torch
    from safetensors.torch import save_file

    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "lora")
    trained = {f"base_model.model.{Q}.lora_{half}.weight": torch.ones(shape)
               for half, shape in (("A", (2, 8)), ("B", (8, 2)))}  # fmt: skip
    pooler = {"base_model.model.pooler.dense.lora_A.weight": torch.ones(2, 8),
              "base_model.model.pooler.dense.lora_B.weight": torch.zeros(8, 2)}  # fmt: skip
    save_file(trained | pooler, adapter / "adapter_model.safetensors")
    found = plan(base, adapter)
    pooler["base_model.model.pooler.dense.lora_B.weight"][3, 1] = 0.1
    save_file(trained | pooler, adapter / "adapter_model.safetensors")

    assert list(found.changes) == [f"{Q}.weight"]
    assert "`pooler.dense`" in refused(base, adapter).message


def test_a_bias_that_the_base_has_no_place_for_is_refused_as_that(tmp_path):
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "lora", lora_bias=True)
    shapes = {"lora_A.weight": (2, 8), "lora_B.weight": (8, 2), "lora_B.bias": (8,)}
    write_safetensors(
        adapter / "adapter_model.safetensors",
        {f"base_model.model.{Q}.{role}": shape for role, shape in shapes.items()},
    )

    with pytest.raises(UnsupportedError, match=r"a bias \(lora_bias=True\)"):
        plan(base, adapter)
