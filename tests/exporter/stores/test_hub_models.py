"""The hub's cache is read by huggingface_hub; GGUFs are named by their quantization, too."""

from __future__ import annotations

import pytest

from exporter.core.errors import ModelError
from exporter.stores.hub_models import find_hub, hub_models
from tests.support.other_stores import add_to_hub, gguf


def test_ggufs_checkpoints_and_adapters_are_told_apart(home):
    add_to_hub(home.cache, "org/cat-GGUF", {"cat.Q8_0.gguf": gguf(home.path), "README.md": b"x"})
    add_to_hub(home.cache, "org/base", {"config.json": b"{}", "model.safetensors": b"x"})
    add_to_hub(home.cache, "org/lora", {"adapter_config.json": b"{}"})
    add_to_hub(home.cache, "org/text", {"README.md": b"y"})

    found = {model.name: (model.problem, model.instead) for model in hub_models(home.cache)}

    assert found == {
        "org/base": ("it is a checkpoint, no GGUF", "decant export - --base org/base"),
        "org/cat-GGUF/cat.Q8_0.gguf": ("", ""),
        "org/lora": ("it is an adapter, no GGUF", "decant export org/lora"),
    }


def test_no_cache_has_no_models(home):
    assert hub_models(home.cache) == []


@pytest.mark.parametrize("name", ["org/cat", "org/cat:Q4_K_M", "org/cat:q4_k_m"])
def test_a_quantization_chooses_among_the_files(home, name):
    files = {f"cat-{quant}.gguf": gguf(home.path, quant) for quant in ("Q4_K_M", "Q8_0")}
    add_to_hub(home.cache, "org/cat", files | {"mmproj-cat.gguf": gguf(home.path, "eye")})

    found = find_hub(name, home.cache)
    assert found.name == "org/cat/cat-Q4_K_M.gguf"
    assert found.files[0].path.read_bytes() == files["cat-Q4_K_M.gguf"]
    assert len(found.files[0].sha256) == 64
    assert [file.path.name for file in found.projectors] == ["mmproj-cat.gguf"]


def test_a_file_is_named_by_its_path_in_the_repo(home):
    add_to_hub(home.cache, "org/cat", {"deep/cat-Q8_0.gguf": gguf(home.path)})

    assert find_hub("org/cat/deep/cat-Q8_0.gguf", home.cache).stem == "cat-Q8_0"


def test_an_unknown_quantization_is_answered_with_those_of_the_repo(home):
    add_to_hub(home.cache, "org/cat", {"cat-Q8_0.gguf": gguf(home.path)})

    with pytest.raises(ModelError) as refused:
        find_hub("org/cat:Q2_K", home.cache)
    assert "cat-Q8_0" in (refused.value.hint or "")


@pytest.mark.parametrize("name", ["../../x", "org/dog", "cat", "org/base:Q8_0"])
def test_an_unknown_name_is_refused(home, name):
    add_to_hub(home.cache, "org/cat", {"cat-Q8_0.gguf": gguf(home.path)})
    add_to_hub(home.cache, "org/base", {"config.json": b"{}", "model.safetensors": b"x"})

    with pytest.raises(ModelError, match="the hub's cache has no model"):
        find_hub(name, home.cache)


def test_parts_of_a_split_model_go_together_or_not_at_all(home):
    parts = {f"big-{n:05}-of-00002.gguf": gguf(home.path, str(n)) for n in (1, 2)}
    snapshot = add_to_hub(home.cache, "org/big", parts)
    assert len(find_hub("org/big", home.cache).files) == 2

    (snapshot / "big-00002-of-00002.gguf").unlink()
    found = find_hub("org/big", home.cache)
    assert found.problem == "big-00002-of-00002.gguf is not in the cache"
    assert found.instead.startswith("decant pull org/big big-00001-of-00002.gguf")
