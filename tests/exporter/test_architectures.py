"""Every architecture with all that an adapter can change in it: each right or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporter.core.errors import UnsupportedError
from exporter.merge.target_modules import CONV1D_MODELS
from tests.support.adapter_features import FEATURES, fits
from tests.support.architectures import ARCHITECTURES, make_architecture
from tests.support.roads import train_and_merge

pytestmark = [pytest.mark.trained, pytest.mark.filterwarnings("ignore")]


CASES = [
    (name, feature)
    for name, made in ARCHITECTURES.items()
    for feature in FEATURES
    if fits(feature, made)
]
SHARED = [case for case in CASES if ARCHITECTURES[case[0]].embedding == "shared"]
REFUSED = [case for case in SHARED if "embedding" in case[1]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("architectures")
    return {name: make_architecture(name, folder / name) for name in ARCHITECTURES}


def merge(models: dict[str, Path], name: str, feature: str, folder: Path, **more: Any) -> Any:
    from peft import LoraConfig

    made = ARCHITECTURES[name]
    settings = {"r": 4, "lora_alpha": 8, "task_type": made.task} | FEATURES[feature](made)
    return train_and_merge(models[name], LoraConfig(**settings), folder, auto=made.auto, **more)


@pytest.mark.parametrize(("name", "feature"), [case for case in CASES if case not in REFUSED])
def test_the_merged_model_answers_as_the_unmerged_one(models, tmp_path, name, feature):
    found = merge(models, name, feature, tmp_path)

    assert found.error < found.effect / 10_000
    assert found.effect > 0.01


@pytest.mark.parametrize(
    ("name", "feature"), [case for case in CASES if "embedding" not in case[1]]
)
def test_in_the_bases_own_type_the_tensors_are_pefts(models, tmp_path, name, feature):
    found = merge(models, name, feature, tmp_path, dtype="base")

    assert found.differing == []


@pytest.mark.parametrize(("name", "feature"), REFUSED)
def test_an_embedding_that_three_share_is_refused(models, tmp_path, name, feature):
    with pytest.raises(UnsupportedError, match=r"`shared\.weight`, which encoder, decoder"):
        merge(models, name, feature, tmp_path)


def test_every_model_that_transposes_its_linear_layers_is_known():
    """By transformers' own source."""
    import transformers

    sources = Path(transformers.__file__).parent.glob("models/*/modeling_*.py")
    using = {
        source.parent.name
        for source in sources
        if any("Conv1D(" in line and "class" not in line for line in source.open())
    }

    assert using == {name.replace("openai-gpt", "openai") for name in CONV1D_MODELS} | {"convbert"}
