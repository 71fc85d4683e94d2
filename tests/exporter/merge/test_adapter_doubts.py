"""What is doubted of an adapter over its base before they are merged."""

from __future__ import annotations

import pytest

from exporter.core.events import Warn
from exporter.inputs.adapter import open_adapter
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.adapter_doubts import say_doubts
from exporter.merge.merge_plan import plan_merge
from tests.support.odd_adapters import STEM, changed
from tests.support.raw import write_adapter, write_base, write_safetensors


def doubts(adapter, base):
    said: list[object] = []
    say_doubts(open_adapter(adapter), open_checkpoint(base), report=said.append)
    return [event.message for event in said if isinstance(event, Warn)]


@pytest.mark.trained
def test_an_adapter_that_was_never_trained_is_doubted(tmp_path):
    from safetensors.torch import load_file, save_file

    folder, base = write_adapter(tmp_path / "lora"), write_base(tmp_path / "base")
    path = folder / "adapter_model.safetensors"

    assert "all its matrices B (or A) are zero" in doubts(folder, base)[0]

    save_file({name: values + 1 for name, values in load_file(path).items()}, path)
    assert doubts(folder, base) == []
    assert "lora_alpha is 0" in doubts(changed(folder, lora_alpha=0), base)[0]


@pytest.mark.trained
def test_settings_that_are_not_known_are_doubted_where_they_are_on(tmp_path):
    from safetensors.torch import load_file, save_file

    folder, base = write_adapter(tmp_path / "lora"), write_base(tmp_path / "base")
    path = folder / "adapter_model.safetensors"
    save_file({name: values + 1 for name, values in load_file(path).items()}, path)
    changed(folder, use_new=False, new_config=None, other_config={}, peft_version="0.99")

    assert doubts(folder, base) == []

    (said,) = doubts(changed(folder, use_new=True), base)
    assert "use_new=True (PEFT 0.99), which decant does not know" in said


@pytest.mark.trained
def test_the_settings_of_the_installed_peft_are_known():
    from peft import LoraConfig

    from exporter.merge.adapter_doubts import OF_LORA_CONFIG

    assert LoraConfig().to_dict().keys() <= OF_LORA_CONFIG


@pytest.mark.trained
def test_layers_that_peft_would_have_adapted_are_doubted(tmp_path):
    from safetensors.torch import load_file, save_file

    folder, base = write_adapter(tmp_path / "lora"), write_base(tmp_path / "base")
    path = folder / "adapter_model.safetensors"
    save_file({name: values + 1 for name, values in load_file(path).items()}, path)
    deeper = {f"model.layers.{n}.self_attn.q_proj.weight": (8, 8) for n in range(3)}
    write_safetensors(base / "model.safetensors", deeper)

    assert doubts(folder, changed(base, "config.json", num_hidden_layers=1)) == []
    (said,) = doubts(folder, changed(base, "config.json", num_hidden_layers=3))
    assert "layers 0 to 0" in said
    assert "layers up to 2" in said
    assert doubts(changed(folder, layers_to_transform=[0]), base) == []


def test_a_head_that_is_nowhere_is_said(tmp_path):
    base = write_base(tmp_path / "base")
    shapes = {"model.embed_tokens.weight": (16, 8), f"{STEM}.weight": (8, 8)}
    write_safetensors(base / "model.safetensors", shapes)

    assert plan_merge(open_checkpoint(base)).notes == ()

    changed(base, "config.json", tie_word_embeddings=False)
    (said,) = plan_merge(open_checkpoint(base)).notes
    assert said.startswith("`lm_head.weight` is in no file")

    write_safetensors(base / "model.safetensors", shapes | {"lm_head.weight": (16, 8)})
    assert plan_merge(open_checkpoint(base)).notes == ()
