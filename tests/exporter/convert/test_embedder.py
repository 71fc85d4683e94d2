"""sentence-transformers' folders: what a GGUF keeps of them, what it cannot, and whole copies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.convert.embedder import DEFAULT_PROMPT, NORMALIZED, PROMPTS, check_modules
from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.core.events import Warn
from exporter.core.gguf import read_gguf
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.formats.gguf_lora import LoraRequest, export_lora
from exporter.formats.safetensors_folder import save_merged
from exporter.inputs.adapter import open_adapter
from exporter.inputs.embedder_files import read_modules
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import WeightedAdapter
from exporter.merge.result_files import result_folder
from tests.support.embedders import make_modules, pooling_config
from tests.support.raw import write_adapter, write_base
from tests.support.tiny import make_adapter, make_base

TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"
MODEL = ("Transformer", "", {})
MEAN = ("Pooling", "1_Pooling", pooling_config("mean"))
UNIT = ("Normalize", "2_Normalize", {})


def dense(folder: Path, path: str = "2_Dense", **changes: Any) -> tuple[str, str, dict[str, Any]]:
    """A dense layer of a model with 4 wide states."""
    import torch
    from safetensors.torch import save_file

    (folder / path).mkdir(parents=True)
    tensors = {"linear.weight": torch.ones(4, 4)}
    tensors["linear.bias"] = torch.full((4,), changes.pop("offset", 0.0))
    save_file(tensors, folder / path / "model.safetensors")
    settings = {"in_features": 4, "out_features": 4, "bias": True, "activation_function": IDENTITY}
    return ("Dense", path, settings | changes)


@pytest.fixture
def base(tmp_path) -> Path:
    return write_base(tmp_path / "base")


@pytest.mark.parametrize(
    ("pooling", "why"),
    [
        (pooling_config("max"), "its pooling, max (llama.cpp has only mean, cls, lasttoken)"),
        (pooling_config("mean", "cls"), "its pooling, cls and mean"),
        ({"pooling_mode": "weightedmean"}, "its pooling, weightedmean"),
        ({"pooling_mode": ["cls", "max"]}, "its pooling, cls and max"),
    ],
)
def test_a_pooling_that_llamacpp_does_not_have_is_refused(base, pooling, why):
    make_modules(base, [MODEL, ("Pooling", "1_Pooling", pooling)])

    with pytest.raises(UnsupportedError) as caught:
        check_modules(base)

    assert why in caught.value.message
    assert "--to safetensors" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"activation_function": TANH}, "llama.cpp has no Tanh after it"),
        ({"use_residual": True}, "llama.cpp has no residual around it"),
        ({"offset": 1.0}, "llama.cpp's converter drops its bias"),
    ],
)
@pytest.mark.trained
def test_a_dense_layer_that_is_more_than_a_matrix_is_refused(base, changes, why):
    make_modules(base, [MODEL, MEAN, dense(base, **changes)])

    with pytest.raises(UnsupportedError, match="its dense layer `2_Dense`") as caught:
        check_modules(base)

    assert why in caught.value.message


def test_a_module_that_is_no_part_of_llamacpp_is_named(base):
    make_modules(base, [MODEL, ("WeightedLayerPooling", "1_W", {}), MEAN])

    with pytest.raises(UnsupportedError, match="its module WeightedLayerPooling"):
        check_modules(base)


@pytest.mark.trained
def test_what_llamacpp_computes_is_taken(base):
    make_modules(base, [MODEL, MEAN, dense(base), ("Dropout", "3_Dropout", {}), UNIT])

    kinds = [module.kind for module in check_modules(base)]

    assert kinds == ["Transformer", "Pooling", "Dense", "Dropout", "Normalize"]


@pytest.mark.parametrize("text", ["{", "{}", '[{"path": "a"}]', '[{"path": "../a", "type": "b"}]'])
def test_a_damaged_list_of_modules_is_an_error_that_names_it(base, text):
    (base / "modules.json").write_text(text)

    with pytest.raises(CheckpointError, match=r"modules\.json"):
        read_modules(base)


def test_the_steps_saved_with_an_adapter_go_before_the_bases(base, tmp_path):
    """As sentence-transformers saves a run: the adapter, and the modules beside it."""
    adapter = write_adapter(tmp_path / "lora")
    make_modules(base, [MODEL, MEAN, UNIT])
    make_modules(adapter, [MODEL, ("Pooling", "1_Pooling", pooling_config("cls"))])
    plan = plan_merge(open_checkpoint(base), [WeightedAdapter(open_adapter(adapter))])

    with result_folder(plan) as folder:
        found = [(module.kind, module.settings.get("pooling_mode_cls_token")) for module in
                 read_modules(folder)]  # fmt: skip

    assert found == [("Transformer", None), ("Pooling", True)]
    assert read_modules(base)[1].settings["pooling_mode_mean_tokens"] is True


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> tuple[Path, Path]:
    """A base whose converter knows of no pooling, and an adapter of a sentence-transformers run."""
    folder = tmp_path_factory.mktemp("llama")
    base = make_base(folder / "base", hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    adapter = make_adapter(folder / "lora", base)
    make_modules(adapter, [MODEL, ("Pooling", "1_Pooling", {"pooling_mode": "lasttoken"})])
    prompts = {"query": "find: ", "document": ""}
    said = {"prompts": prompts, "default_prompt_name": "query"}
    (adapter / "config_sentence_transformers.json").write_text(json.dumps(said))
    return base, adapter


@pytest.mark.llamacpp
@pytest.mark.trained
def test_a_gguf_keeps_pooling_prompts_and_lengths_of_any_architecture(llama, toolchain, tmp_path):
    said: list[Any] = []
    request = ExportRequest(((llama[1], 1.0),), llama[0], ("F16",), (tmp_path / "m.gguf",))
    export(request, toolchain, report=said.append)
    header = read_gguf(tmp_path / "m.gguf")

    assert header.number("llama.pooling_type") == 3
    assert json.loads(header.text(PROMPTS) or "") == {"query": "find: ", "document": ""}
    assert header.text(DEFAULT_PROMPT) == "query"
    assert header.metadata[NORMALIZED] is False
    assert any("prompts 'query'" in getattr(event, "message", "") for event in said)


@pytest.mark.llamacpp
@pytest.mark.trained
def test_an_adapters_own_file_says_what_it_cannot_hold(llama, toolchain, tmp_path):
    said: list[Any] = []
    request = LoraRequest(llama[1], llama[0], tmp_path / "lora.gguf")
    export_lora(request, toolchain, report=said.append)

    warned = [event.message for event in said if isinstance(event, Warn)]
    assert any("holds no pooling (lasttoken)" in text for text in warned)


@pytest.mark.llamacpp
@pytest.mark.trained
def test_dense_layers_of_an_architecture_without_are_refused(llama, toolchain, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for path in llama[0].iterdir():
        (base / path.name).symlink_to(path)
    make_modules(base, [MODEL, MEAN, dense(base)])

    with pytest.raises(UnsupportedError, match="has none for this architecture"):
        export(ExportRequest((), base, ("F16",), (tmp_path / "m.gguf",)), toolchain)


@pytest.mark.trained
def test_a_merged_folder_holds_the_modules_and_may_be_replaced(llama, tmp_path):
    base, adapter = llama
    out = tmp_path / "out"
    for force in (False, True):
        save_merged(ExportRequest(((adapter, 1.0),), base, (), (), force=force), out)

    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"} <= names
    assert json.loads((out / "1_Pooling/config.json").read_text()) == {"pooling_mode": "lasttoken"}
