"""LM Studio's folder is found as LM Studio finds it, and models in it by several names."""

from __future__ import annotations

import json

import pytest

from exporter.core.errors import ModelError
from exporter.stores.lmstudio_models import find_lmstudio, lmstudio_folder, lmstudio_models
from tests.support.other_stores import add_to_lmstudio


def test_the_folder_is_below_the_home(home):
    assert lmstudio_folder() == home.path / ".lmstudio" / "models"


def test_an_older_folder_is_used_where_it_is(home):
    (home.path / ".cache" / "lm-studio").mkdir(parents=True)

    assert lmstudio_folder() == home.path / ".cache" / "lm-studio" / "models"


def test_the_pointer_and_the_settings_take_precedence(home):
    elsewhere = home.path / "elsewhere"
    elsewhere.mkdir()
    (home.path / ".lmstudio-home-pointer").write_text(f"{elsewhere}\n")
    assert lmstudio_folder() == elsewhere / "models"

    (elsewhere / "settings.json").write_text(json.dumps({"downloadsFolder": "/disk/models"}))
    assert str(lmstudio_folder()) == "/disk/models"


@pytest.mark.parametrize("settings", ["", "[]", "{", '{"downloadsFolder": 3}', "[" * 100_000])
def test_damaged_settings_mean_the_usual_folder(home, settings):
    folder = home.path / ".lmstudio"
    folder.mkdir()
    (folder / "settings.json").write_text(settings)

    assert lmstudio_folder() == folder / "models"


@pytest.mark.parametrize(
    "name",
    ["org/Cat-GGUF/Cat-Q8_0.gguf", "org/Cat-GGUF/Cat-Q8_0", "org/Cat-GGUF", "Cat-GGUF",
     "Cat-Q8_0.gguf", "Cat-Q8_0"],
)  # fmt: skip
def test_a_model_has_several_names(home, name):
    (path,) = add_to_lmstudio(home.lmstudio, "org/Cat-GGUF/Cat-Q8_0.gguf")

    assert find_lmstudio(name).files[0].path == path


def test_a_name_of_two_models_is_refused_with_their_whole_names(home):
    names = ("me/Cat/Cat.gguf", "you/Cat/Cat.gguf")
    add_to_lmstudio(home.lmstudio, *names)

    with pytest.raises(ModelError, match="is the name of 2 models") as refused:
        find_lmstudio("Cat")
    assert refused.value.hint == f"name one: {', '.join(names)}"


@pytest.mark.parametrize("name", ["../../etc/passwd", "dog", "", "org"])
def test_an_unknown_name_is_refused_with_the_place(home, name):
    add_to_lmstudio(home.lmstudio, "org/Cat/Cat.gguf")

    with pytest.raises(ModelError, match="LM Studio has no model") as refused:
        find_lmstudio(name)
    assert str(home.lmstudio) in refused.value.message
    assert "org/Cat/Cat.gguf" in (refused.value.hint or "")


def test_parts_are_one_model_and_projectors_belong_to_theirs(home):
    add_to_lmstudio(
        home.lmstudio,
        "org/Big/Big-00001-of-00002.gguf",
        "org/Big/Big-00002-of-00002.gguf",
        "org/Eye/Eye.gguf",
        "org/Eye/mmproj-Eye.gguf",
    )

    big, eye = lmstudio_models()
    assert [file.path.name[4:9] for file in big.files] == ["00001", "00002"]
    assert big.stem == "Big"
    assert [file.path.name for file in eye.projectors] == ["mmproj-Eye.gguf"]


def test_a_missing_part_is_told(home):
    add_to_lmstudio(home.lmstudio, "org/Big/Big-00001-of-00002.gguf")

    assert lmstudio_models()[0].problem == "Big-00002-of-00002.gguf is missing"
