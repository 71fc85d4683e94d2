"""Every architecture to GGUF: the one pass against llama.cpp's converter on the merged folder.

The merged folder itself is proven in test_architectures. Vocabularies are left out: a converter
knows a byte-pair tokenizer only by the hash of a published one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from exporter.convert.upstream_fixes import patch_settings
from exporter.core.errors import UnsupportedError
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.llamacpp.converter_import import imported
from exporter.llamacpp.toolchain import Toolchain
from tests.support.adapter_features import FEATURES, fits
from tests.support.architectures import ARCHITECTURES, make_architecture
from tests.support.reference import read_gguf
from tests.support.roads import merge, shake
from tests.support.tiny import make_tokenizer

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

UNKNOWN = ("opt", "rwkv")
"""What llama.cpp's converter has no class for."""
ALWAYS_TIED = ("gemma2",)
"""What it gives no head of their own."""
PICTURES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
TOGETHER = ("linear", "experts", "saved_embedding")
CASES = [
    (name, feature)
    for name, made in ARCHITECTURES.items()
    for feature in TOGETHER
    if fits(feature, made) and not (made.embedding == "shared" and "embedding" in feature)
]
TIED_CASES = [case for case in CASES if case[0] in ALWAYS_TIED and case[1] == "saved_embedding"]
GOOD = [case for case in CASES if case[0] not in UNKNOWN and case not in TIED_CASES]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("architectures")
    made = {name: make_architecture(name, folder / name) for name in ARCHITECTURES}
    for model in made.values():
        make_tokenizer(model)  # some converters open it, whatever they do with it
        (model / "tokenizer.json").write_text("{}")
        (model / "preprocessor_config.json").write_text(json.dumps(PICTURES))
    return made


@pytest.fixture
def converter(toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch) -> Any:
    """llama.cpp's classes, with their own way to leave a vocabulary out."""
    with imported(toolchain):
        from conversion import ModelBase, ModelType, get_model_class, load_all_models
        from conversion.base import TextModel

        load_all_models()
        for module in [m for name, m in sys.modules.items() if name.startswith("conversion.")]:
            for kind in vars(module).values():
                if isinstance(kind, type) and issubclass(kind, TextModel):
                    monkeypatch.setattr(kind, "set_vocab", TextModel._set_vocab_none)
        yield get_model_class, ModelBase, ModelType


def adapt(model: Path, name: str, feature: str, folder: Path) -> Path:
    """An adapter with random values."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    made = ARCHITECTURES[name]
    settings = {"r": 4, "lora_alpha": 8, "task_type": made.task} | FEATURES[feature](made)
    torch.manual_seed(2)
    base = getattr(transformers, made.auto).from_pretrained(model, dtype="auto")
    trained = get_peft_model(base, LoraConfig(**settings))
    shake(trained)
    trained.save_pretrained(folder)
    return folder


def convert_merged(converter: Any, folder: Path, output: Path) -> Path:
    """What llama.cpp's converter makes of a merged folder."""
    import gguf
    import torch
    from conversion import TEXT_MODEL_MAP, get_model_architecture

    get_class, model_base, model_type = converter
    # transformers 5 leaves out what the converter needs for three of them
    hparams = patch_settings(model_base.load_hparams(folder, is_mistral_format=False), folder)
    with torch.inference_mode():
        # it spells MptForCausalLM and PhimoeForCausalLM otherwise than transformers
        found = get_model_architecture(hparams, model_type.TEXT).lower()
        kind = get_class(next(name for name in TEXT_MODEL_MAP if name.lower() == found))
        kind(
            folder, gguf.LlamaFileType.MOSTLY_BF16, output, model_name="x", hparams=hparams
        ).write()
    return output


@pytest.mark.parametrize(("name", "feature"), GOOD)
def test_the_one_pass_gives_the_converters_tensors(
    models, converter, toolchain, tmp_path, name, feature
):
    adapter = adapt(models[name], name, feature, tmp_path / "adapter")
    merge(models[name], adapter, tmp_path / "merged", dtype="base")
    expected = read_gguf(convert_merged(converter, tmp_path / "merged", tmp_path / "usual.gguf"))
    output = tmp_path / "ours.gguf"

    result = export(
        ExportRequest(((adapter, 1.0),), models[name], ("BF16",), (output,), merge_dtype="base"),
        toolchain,
    )

    actual = read_gguf(output)
    assert result.merged > 0
    assert list(actual[1]) == list(expected[1])
    assert [tensor for tensor in expected[1] if actual[1][tensor] != expected[1][tensor]] == []
    keys = {key for key in expected[0] if not key.startswith("general.")}
    assert {key for key in keys if actual[0][key] != expected[0][key]} == set()


@pytest.mark.parametrize(("name", "feature"), TIED_CASES)
def test_a_head_that_a_gguf_has_no_place_for_is_refused(
    models, converter, toolchain, tmp_path, name, feature
):
    adapter = adapt(models[name], name, feature, tmp_path / "adapter")
    request = ExportRequest(((adapter, 1.0),), models[name], ("BF16",), (tmp_path / "x.gguf",))

    with pytest.raises(UnsupportedError, match=r"has no place for `.*lm_head\.weight`"):
        export(request, toolchain)

    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_architecture_that_llamacpp_lacks_is_named(models, toolchain, tmp_path, name):
    adapter = adapt(models[name], name, "linear", tmp_path / "adapter")
    request = ExportRequest(((adapter, 1.0),), models[name], ("BF16",), (tmp_path / "x.gguf",))

    with pytest.raises(UnsupportedError, match="does not know the architecture") as caught:
        export(request, toolchain)

    assert "--to safetensors" in caught.value.hint
