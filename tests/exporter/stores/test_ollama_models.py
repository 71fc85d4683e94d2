"""Ollama's store is read strictly, in both of its layouts, and never changed."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from exporter.core.errors import InputError, ModelError, UnsupportedError
from exporter.stores import ollama_models as module
from exporter.stores.all_stores import find_other
from exporter.stores.ollama_manifest import LARGEST, LIST, MANIFEST
from exporter.stores.ollama_models import ollama_gguf, ollama_models
from tests.support.other_stores import LIBRARY, OllamaStore, contents, gguf


def refusal(name: str) -> InputError:
    with pytest.raises(InputError) as refused:
        find_other("ollama", name, os.environ)
    return refused.value


def test_a_model_is_found_by_its_name_and_tag(home):
    blob = home.ollama.add("llama3.2", "1b")

    assert ollama_gguf("ollama:llama3.2:1b") == blob
    assert ollama_gguf("ollama:LLAMA3.2:1B") == blob  # Ollama compares so, too


def test_an_unknown_name_is_answered_with_the_known_ones(home):
    home.ollama.add("llama3.2")

    error = refusal("llama")
    assert error.message == "Ollama has no model 'llama'"
    assert "it has llama3.2" in (error.hint or "")


def test_without_a_store_the_hint_says_where_decant_looks(home):
    assert "OLLAMA_MODELS" in (refusal("llama").hint or "")


def test_a_store_of_another_user_is_told(home, monkeypatch):
    assert module.unreadable(home.path) == ""
    monkeypatch.setattr(module.os, "access", lambda *args: False)

    assert "you may not read it" in module.unreadable(home.path)
    assert module.unreadable(home.path / "none") == ""


def test_a_list_holds_all_and_says_what_cannot_be_imported(home):
    store = home.ollama
    store.add("whole")
    store.add("lost").unlink()
    store.name(f"{LIBRARY}/cloud/latest", store.manifest([]))
    tensors = [store.layer("tensor", b"1"), store.layer("tensor", b"2")]
    store.name(f"{LIBRARY}/mlx/latest", store.manifest(tensors))
    store.name(f"{LIBRARY}/text/latest", "no JSON")
    before = contents(store.home)

    found = {model.name: model.problem for model in ollama_models({})}

    assert found["whole:latest"] == ""
    assert "is missing" in found["lost:latest"]
    assert "no weights are on this machine" in found["cloud:latest"]
    assert "safetensors" in found["mlx:latest"]
    assert "holds a line of text" in found["text:latest"]
    assert contents(store.home) == before


def test_of_two_stores_with_one_name_the_first_counts_and_the_other_is_listed(home, monkeypatch):
    home.ollama.add("cat")
    first = OllamaStore(home.path / "first")
    blob = first.add("cat", params=b"{}")
    monkeypatch.setenv("OLLAMA_MODELS", str(first.home))

    assert ollama_gguf("ollama:cat") == blob
    problems = [model.problem for model in ollama_models(os.environ)]
    assert problems[0] == ""
    assert f"OLLAMA_MODELS={home.ollama.home}" in problems[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schemaVersion": 3}, "is a manifest of version 3"),
        ({"mediaType": "application/vnd.ollama.manifest.v9+json"}, "of the kind"),
    ],
)
def test_a_newer_layout_is_refused_with_the_way_to_update(home, changes, said):
    store = home.ollama
    layers = [store.layer("model", gguf(store.home))]
    store.name(f"{LIBRARY}/cat/latest", store.manifest(layers, **changes))

    error = refusal("cat")
    assert isinstance(error, UnsupportedError)
    assert said in error.message
    assert "decant update-check" in (error.hint or "")


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("", "is empty"),
        ("no JSON", "holds a line of text"),
        ('{"layers": [', "is not JSON"),
        pytest.param("[" * 100_000, "is not JSON", id="deep"),
        ("[]", "holds a list"),
        ('{"layers": 1}', "lists no layers"),
        ('{"layers": [1]}', "a layer that is no object"),
        ('{"layers": [{"mediaType": "x"}]}', "without a kind or a size"),
        ('{"layers": [{"mediaType": 1, "size": "2"}]}', "without a kind or a size"),
        pytest.param(json.dumps({"pad": "x" * LARGEST}), f"at most {LARGEST}", id="huge"),
    ],
)
def test_a_damaged_manifest_is_refused_in_words(home, manifest, said):
    home.ollama.name(f"{LIBRARY}/cat/latest", manifest)

    error = refusal("cat")
    assert said in error.message
    assert "again" in (error.hint or "")


@pytest.mark.parametrize(
    "digest",
    ["../../../etc/passwd", "sha256:../../x", "sha256:" + "0" * 63, "md5:" + "0" * 64, None, 7,
     "sha256-" + "0" * 64 + "/../x", "sha256:" + "0" * 64 + "\n"],
)  # fmt: skip
def test_a_manifest_that_names_no_hash_is_refused(home, digest):
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": 1}
    home.ollama.name(f"{LIBRARY}/cat/latest", home.ollama.manifest([layer]))

    assert "which is no sha256" in refusal("cat").message


def test_a_manifest_that_is_a_link_out_of_the_store_is_refused(home):
    outside = home.path / "elsewhere.json"
    outside.write_text(json.dumps(home.ollama.manifest([])))
    path = home.ollama.name(f"{LIBRARY}/cat/latest", "")
    path.unlink()
    path.symlink_to(outside)

    assert "which is not in Ollama's store" in refusal("cat").message


def test_an_unfinished_download_is_told_as_such(home):
    blob = home.ollama.add("cat")
    blob.rename(blob.with_name(f"{blob.name}-partial"))

    error = refusal("cat")
    assert error.message.endswith("is missing: its download is not finished")
    assert "ollama pull" in (error.hint or "")


def test_a_blob_of_another_size_is_refused(home):
    blob = home.ollama.add("cat")
    blob.write_bytes(blob.read_bytes()[:-1])

    assert "does not have the" in refusal("cat").message


def test_several_ggufs_are_one_too_many(home):
    store = home.ollama
    layers = [store.layer("model", gguf(store.home, name)) for name in "ab"]
    store.name(f"{LIBRARY}/cat/latest", store.manifest(layers))

    assert "consists of 2 GGUFs" in refusal("cat").message


KEYS = ("schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "runner",
        "format")  # fmt: skip
LEAVES = strategies.one_of(
    strategies.none(), strategies.integers(), strategies.text(max_size=4), strategies.booleans(),
    strategies.sampled_from((LIST, MANIFEST, 2, "gguf", "llamacpp", "sha256:" + "0" * 64)),
)  # fmt: skip
JSON = strategies.recursive(
    LEAVES,
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(strategies.sampled_from(KEYS), inner, max_size=6)
    ),
    max_leaves=12,
)


@pytest.mark.lasting
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=strategies.dictionaries(strategies.sampled_from(KEYS), JSON))
def test_no_manifest_keeps_the_others_from_being_listed(home, value):
    home.ollama.name(f"{LIBRARY}/odd/latest", value)
    home.ollama.name(f"{LIBRARY}/zoo/latest", home.ollama.manifest([]))

    found = {model.name: model.problem for model in ollama_models({})}
    assert found["odd:latest"]
    assert len(found) == 2


class TestLists:
    """A manifest in the newer folder may be a list, whose entries are for one engine each."""

    def linked(self, store: OllamaStore, manifest: object) -> None:
        digest = store.blob(json.dumps(manifest).encode())
        path = store.home / "manifests-v2" / LIBRARY / "cat" / "latest"
        path.parent.mkdir(parents=True)
        path.symlink_to(os.path.relpath(store.place(digest), path.parent))

    def entry(self, store: OllamaStore, name: str, **more: object) -> dict[str, object]:
        layers = [store.layer("model", gguf(store.home, name))]
        digest = store.blob(json.dumps(store.manifest(layers)).encode())
        return {"mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "digest": digest, **more}  # fmt: skip

    def test_the_gguf_for_llama_cpp_is_chosen(self, home):
        store = home.ollama
        entries = [
            self.entry(store, "mlx", runner="mlx", format="safetensors"),
            self.entry(store, "own", runner="ollama", format="gguf"),
            self.entry(store, "cpp", runner="llamacpp", format="gguf"),
        ]
        self.linked(store, {"schemaVersion": 2, "mediaType": LIST, "manifests": entries})

        assert ollama_gguf("ollama:cat").read_bytes() == gguf(store.home, "cpp")

    def test_it_takes_precedence_over_the_older_folder(self, home):
        store = home.ollama
        store.add("cat")
        layers = [store.layer("model", gguf(store.home, "newer"))]
        self.linked(store, store.manifest(layers))

        assert ollama_gguf("ollama:cat").read_bytes() == gguf(store.home, "newer")
        assert [model.name for model in ollama_models({})] == ["cat:latest"]

    def test_a_dead_link_gives_way_to_the_older_folder(self, home):
        store = home.ollama
        blob = store.add("cat")
        self.linked(store, store.manifest([]))
        (store.home / "manifests-v2" / LIBRARY / "cat" / "latest").resolve().unlink()

        assert ollama_gguf("ollama:cat") == blob

    def test_a_list_without_a_gguf_names_its_engines(self, home):
        store = home.ollama
        entries = [self.entry(store, "mlx", runner="mlx", format="safetensors")]
        self.linked(store, {"schemaVersion": 2, "mediaType": LIST, "manifests": entries})

        error = refusal("cat")
        assert isinstance(error, UnsupportedError)
        assert "its engines: mlx" in error.message

    @pytest.mark.parametrize("manifests", [None, 3, [], [1], [{}], [{"digest": "x"}]])
    def test_a_damaged_list_is_refused(self, home, manifests):
        self.linked(home.ollama, {"schemaVersion": 2, "mediaType": LIST, "manifests": manifests})

        assert isinstance(refusal("cat"), ModelError | UnsupportedError)

    def test_an_entry_whose_blob_was_changed_is_refused(self, home):
        store = home.ollama
        entry = self.entry(store, "cpp", runner="llamacpp")
        blob = store.place(str(entry["digest"]))
        blob.write_bytes(blob.read_bytes() + b" ")
        self.linked(store, {"schemaVersion": 2, "mediaType": LIST, "manifests": [entry]})

        assert "it has another hash" in refusal("cat").message
