"""A stored model is given to Ollama with its settings, and to LM Studio in a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from exporter.core.errors import DecantError, ModelError, OutputError, UnsupportedError
from exporter.core.events import Warn, silent
from exporter.share.linked_model import link_model, short_count
from exporter.stores.lmstudio_models import find_lmstudio
from exporter.stores.ollama_manifest import read_manifest
from exporter.stores.ollama_models import find_named
from exporter.stores.ollama_settings import texts
from tests.support.fake_ollama import FakeOllama
from tests.support.other_home import OtherHome, make_home
from tests.support.other_stores import MODEL, TEMPLATE, contents
from tests.support.upload_stage import write_gguf, write_split

pytestmark = pytest.mark.lasting


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OtherHome:
    """A home folder with an Ollama and an LM Studio."""
    made = make_home(tmp_path / "home", monkeypatch)
    assert made.ollama.blobs.is_dir()
    made.lmstudio.mkdir(parents=True)
    return made


@pytest.fixture
def model(home: OtherHome) -> Path:
    keys = {**MODEL, "tokenizer.chat_template": TEMPLATE}
    return write_gguf(home.store / "cat-Q8_0.gguf", keys)


def settings_of(name: str) -> dict[str, str]:
    named = find_named(name, {})
    manifest = read_manifest(named.path, named.home)
    kinds = ("template", "system", "params")
    return {kind: text for kind in kinds for text in texts(manifest, kind)}


def test_ollama_gets_the_template_and_the_stops(home, model):
    made = link_model(model, "ollama", None, report=silent)

    assert (made.name, made.kind) == ("cat:Q8_0", "hard")
    found = settings_of("cat:Q8_0")
    assert "{{ range $i, $_ := .Messages }}" in found["template"]
    assert json.loads(found["params"]) == {"stop": ["</s>"]}


def test_ollama_shows_the_models_facts(home, model):
    link_model(model, "ollama", "cat", report=silent)
    named = find_named("cat", {})
    manifest = read_manifest(named.path, named.home)
    assert manifest.config is not None
    config = json.loads(manifest.file(manifest.config).path.read_bytes())

    assert config["model_format"] == "gguf"
    assert config["model_families"] == ["llama"]
    assert (config["model_type"], config["file_type"]) == ("1.02K", "Q8_0")


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (999, "999"),
        (1024, "1.02K"),
        (541_440, "541.44K"),
        (2_000_000, "2M"),
        (1_235_814_432, "1.2B"),
    ],
)
def test_numbers_are_shown_as_ollama_does(count, shown):
    assert short_count(count) == shown


def test_a_model_without_a_template_is_told(home):
    path = write_gguf(home.store / "bare-Q8_0.gguf", MODEL)
    said = []
    link_model(path, "ollama", None, report=said.append)

    assert any(isinstance(event, Warn) and "bare text" in event.message for event in said)
    assert "template" not in settings_of("bare:Q8_0")


def test_both_quantizations_stand_side_by_side(home, model):
    other = write_gguf(home.store / "cat-Q4_0.gguf", MODEL)

    names = [link_model(path, "ollama", None, report=silent).name for path in (model, other)]
    assert names == ["cat:Q8_0", "cat:Q4_0"]


def test_a_taken_name_is_refused_with_what_to_type(home, model):
    home.ollama.add("cat", "Q8_0")

    with pytest.raises(OutputError) as refused:
        link_model(model, "ollama", None, report=silent)
    assert refused.value.hint == (
        "`decant link cat-Q8_0 --to ollama --as NAME` gives it another name"
    )


def test_a_projector_goes_along(home, model):
    write_gguf(home.store / "mmproj-cat-Q8_0.gguf", {"general.architecture": "clip"})
    link_model(model, "ollama", "eye", report=silent)
    named = find_named("eye", {})
    assert len(read_manifest(named.path, named.home).of("projector")) == 1

    link_model(model, "lmstudio", None, report=silent)
    assert len(find_lmstudio("decant/cat").projectors) == 1


@pytest.mark.parametrize("target", ["ollama", "lmstudio"])
@pytest.mark.parametrize("keys", [{"general.type": "adapter"}, {"general.architecture": "clip"}])
def test_adapters_and_projectors_are_refused(home, target, keys):
    path = write_gguf(home.store / "cat.lora.gguf", MODEL | keys)

    with pytest.raises(ModelError):
        link_model(path, target, None, report=silent)


def test_a_split_model_is_for_lm_studio_alone(home):
    first = write_split(home.store, "big")[0]

    with pytest.raises(UnsupportedError, match="is split into 3 files") as refused:
        link_model(first, "ollama", None, report=silent)
    assert "--split-max-size" in (refused.value.hint or "")
    made = link_model(first, "lmstudio", None, report=silent)
    assert made.name == "decant/big"
    assert len(find_lmstudio("decant/big").files) == 3


def test_lm_studio_gets_a_folder_with_links(home, model):
    made = link_model(model, "lmstudio", "me/cat", report=silent)

    assert made.place == home.lmstudio / "me" / "cat"
    assert (made.place / model.name).samefile(model)
    assert link_model(model, "lmstudio", "me/cat", report=silent).kind == "same"


@pytest.mark.parametrize("name", ["../x", "a/../b", "a/b/c", "/etc", "", ".", "a/.b", "a/b\n"])
def test_a_name_with_a_path_is_refused_for_lm_studio(home, model, name):
    before = contents(home.path)
    with pytest.raises(ModelError, match="is no name of a model of LM Studio's"):
        link_model(model, "lmstudio", name or "/", report=silent)
    assert contents(home.path) == before


def test_a_taken_file_of_lm_studio_is_refused(home, model):
    theirs = write_gguf(home.lmstudio / "decant" / "cat" / model.name, {**MODEL, "x": "y"})
    before = theirs.read_bytes()

    with pytest.raises(OutputError, match="exists") as refused:
        link_model(model, "lmstudio", None, report=silent)
    assert "--as NAME" in (refused.value.hint or "")
    assert theirs.read_bytes() == before


def test_of_a_refused_model_no_part_is_linked(home):
    parts = write_split(home.store, "big")
    theirs = write_gguf(home.lmstudio / "decant" / "big" / parts[0].name, {**MODEL, "x": "y"})

    with pytest.raises(OutputError, match="exists"):
        link_model(parts[0], "lmstudio", None, report=silent)
    assert list(theirs.parent.iterdir()) == [theirs]


def test_programs_that_are_not_here_are_told(tmp_path, monkeypatch):
    home = make_home(tmp_path / "empty", monkeypatch)
    path = write_gguf(home.store / "cat-Q8_0.gguf", MODEL)

    with pytest.raises(OutputError, match="Ollama has no store"):
        link_model(path, "ollama", None, report=silent)
    with pytest.raises(OutputError, match="LM Studio has no folder"):
        link_model(path, "lmstudio", None, report=silent)
    assert list(home.path.iterdir()) == []


class TestCopies:
    """`--copy` sends the bytes over the API of an Ollama whose store is not ours to write to."""

    def test_the_file_is_sent_once_and_the_settings_go_along(self, home, model, monkeypatch):
        with FakeOllama() as ollama:
            monkeypatch.setenv("OLLAMA_HOST", ollama.address)
            made = link_model(model, "ollama", "cat", copy=True, report=silent)
            asked = ollama.models["cat:latest"]
            sent = [path for method, path in ollama.asked if path.startswith("/api/blobs")]
            link_model(model, "ollama", "dog", copy=True, report=silent)
            again = [path for method, path in ollama.asked if path.startswith("/api/blobs")]

        assert (made.name, made.kind, made.place) == ("cat:latest", "copy", None)
        assert list(asked["files"]) == ["cat-Q8_0.gguf"]
        assert ollama.blobs[asked["files"]["cat-Q8_0.gguf"]] == model.read_bytes()
        assert asked["parameters"] == {"stop": ["</s>"]}
        assert "{{ range" in asked["template"]
        assert (len(sent), len(again)) == (2, 3)  # HEAD and POST; then HEAD alone
        assert contents(home.ollama.home) == {}

    def test_a_taken_name_is_refused_before_anything_is_sent(self, home, model, monkeypatch):
        with FakeOllama() as ollama:
            ollama.models["cat:latest"] = {}
            monkeypatch.setenv("OLLAMA_HOST", ollama.address)
            with pytest.raises(OutputError, match="has a model 'cat:latest' already"):
                link_model(model, "ollama", "cat", copy=True, report=silent)
        assert ollama.asked == [("POST", "/api/show")]

    def test_what_ollama_says_is_shown(self, home, model, monkeypatch):
        with FakeOllama(refuses="no room") as ollama:
            monkeypatch.setenv("OLLAMA_HOST", ollama.address)
            with pytest.raises(OutputError, match="did not create 'cat:latest': no room"):
                link_model(model, "ollama", "cat", copy=True, report=silent)

    def test_without_an_ollama_it_is_told_at_once(self, home, model):
        with pytest.raises(OutputError, match="no Ollama answers at http://127") as refused:
            link_model(model, "ollama", "cat", copy=True, report=silent)
        assert "OLLAMA_HOST" in (refused.value.hint or "")

    def test_a_running_ollama_with_another_store_is_told(self, home, model, monkeypatch):
        said = []
        with FakeOllama() as ollama:
            monkeypatch.setenv("OLLAMA_HOST", ollama.address)
            link_model(model, "ollama", "cat", report=said.append)

        warnings = [event.message for event in said if isinstance(event, Warn)]
        assert any("it has another store" in warning for warning in warnings)

    @pytest.mark.parametrize("host", ["http://[::1", "127.0.0.1:x", "127.0.0.1:99999"])
    def test_an_address_that_is_none_is_refused(self, home, model, monkeypatch, host):
        monkeypatch.setenv("OLLAMA_HOST", host)
        with pytest.raises(DecantError, match="OLLAMA_HOST is"):
            link_model(model, "ollama", "cat", copy=True, report=silent)
        assert os.environ["OLLAMA_HOST"] == host


def test_a_store_that_is_named_and_missing_is_not_replaced_by_another(home, model, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(home.path / "unplugged"))

    with pytest.raises(OutputError, match="OLLAMA_MODELS names"):
        link_model(model, "ollama", None, report=silent)
    assert contents(home.ollama.home) == {}
