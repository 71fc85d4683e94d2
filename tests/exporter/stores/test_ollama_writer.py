"""A model is written into Ollama's layout: blobs first, the name last, nothing replaced."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from exporter.core.errors import OutputError
from exporter.core.file_lock import try_lock
from exporter.stores import file_link, ollama_writer
from exporter.stores.ollama_manifest import read_manifest
from exporter.stores.ollama_models import all_named, find_named, ollama_gguf
from exporter.stores.ollama_names import parse_ollama_name
from exporter.stores.ollama_writer import LinkedBlob, NewModel, write_model
from tests.support.killed_calls import killed_at_each_change
from tests.support.other_home import OtherHome
from tests.support.other_stores import MODEL, contents
from tests.support.upload_stage import write_gguf

TAKEN = "`decant link cat --to ollama --as NAME`"


@pytest.fixture
def new(home: OtherHome) -> NewModel:
    """A model of the store with its projector, for an Ollama that has another model."""
    home.ollama.add("other")
    paths = [write_gguf(home.store / name, MODEL) for name in ("cat-Q8_0.gguf", "mmproj-cat.gguf")]
    linked = tuple(
        LinkedBlob(kind, path, hashlib.sha256(path.read_bytes()).hexdigest())
        for kind, path in zip(("model", "projector"), paths, strict=True)
    )
    texts = (("template", b"{{ .Prompt }}"), ("params", b'{"stop":["</s>"]}'))
    return NewModel(parse_ollama_name("cat:Q8_0"), linked, texts, {"model_format": "gguf"})


def write(new: NewModel, home: OtherHome) -> str:
    return write_model(new, home.ollama.home, if_taken=TAKEN)


def test_ollama_finds_the_model_and_its_layers(home, new):
    assert write(new, home) == "hard"

    named = find_named("cat:Q8_0", {})
    manifest = read_manifest(named.path, named.home)
    kinds = [layer.kind for layer in manifest.layers]
    assert kinds == ["model", "projector", "template", "params"]
    for layer in manifest.layers:
        content = manifest.file(layer).path.read_bytes()
        assert hashlib.sha256(content).hexdigest() == layer.sha256
    assert ollama_gguf("ollama:cat:Q8_0").samefile(new.linked[0].path)
    assert manifest.config is not None
    assert json.loads(manifest.file(manifest.config).path.read_bytes()) == new.config


def test_the_manifest_is_one_that_ollama_writes(home, new):
    write(new, home)
    value = json.loads(find_named("cat:Q8_0", {}).path.read_bytes())

    assert value["schemaVersion"] == 2
    assert value["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert value["config"]["mediaType"] == "application/vnd.docker.container.image.v1+json"
    assert {layer["mediaType"].rpartition(".")[0] for layer in value["layers"]} == {
        "application/vnd.ollama.image"
    }


def test_what_was_there_stays_as_it_was(home, new):
    before = contents(home.ollama.home)
    write(new, home)
    after = contents(home.ollama.home)

    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if "partial" in name]


def test_a_second_time_nothing_is_done(home, new):
    write(new, home)
    before = contents(home.ollama.home)

    assert write(new, home) == "same"
    assert contents(home.ollama.home) == before


@pytest.mark.parametrize("name", ["cat/Q8_0", "CAT/q8_0"])
@pytest.mark.parametrize("root", ["manifests", "manifests-v2"])
def test_a_taken_name_is_refused_in_either_case_and_folder(home, new, name, root):
    store = home.ollama
    other = store.manifest([store.layer("model", b"another")])
    path = store.name(f"registry.ollama.ai/library/{name}", other, root)
    before = contents(store.home)

    with pytest.raises(OutputError, match="has a model 'cat:Q8_0' already") as refused:
        write(new, home)
    assert refused.value.hint == TAKEN
    assert contents(store.home) == before
    assert json.loads(path.read_bytes()) == other


def test_a_name_with_a_damaged_manifest_is_taken_too(home, new):
    path = home.ollama.name("registry.ollama.ai/library/cat/Q8_0", "damaged")

    with pytest.raises(OutputError):
        write(new, home)
    assert path.read_text() == "damaged"


def test_a_name_that_appears_meanwhile_is_not_replaced(home, new, monkeypatch):
    place = "registry.ollama.ai/library/cat/Q8_0"

    def and_ollama_writes(name: object, store: Path, hint: str) -> None:
        home.ollama.name(place, "theirs")

    monkeypatch.setattr(ollama_writer, "refuse_taken", and_ollama_writes)
    with pytest.raises(OutputError) as refused:
        write(new, home)
    assert refused.value.hint == TAKEN
    assert (home.ollama.home / "manifests" / place).read_text() == "theirs"


def test_two_at_a_time_do_not_mix(home, new):
    partial = home.ollama.home / "manifests" / ollama_writer.PARTIAL
    with partial.open("wb") as file:
        assert try_lock(file)
        with pytest.raises(OutputError, match="another process is writing") as refused:
            write(new, home)
    assert refused.value.hint == "try again in a moment"
    assert write(new, home) == "same"  # the blobs are there
    assert ollama_gguf("ollama:cat:Q8_0").samefile(new.linked[0].path)


def test_on_another_disk_the_blob_is_a_symbolic_link(home, new, monkeypatch):
    def across_disks(source: Path, target: Path) -> None:
        if "blobs" in str(target) and "sha256" in str(target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real_link(source, target)

    real_link = os.link
    monkeypatch.setattr(file_link.os, "link", across_disks)

    assert write(new, home) == "symbolic"
    assert ollama_gguf("ollama:cat:Q8_0").readlink() == new.linked[0].path


def test_a_blob_that_is_no_whole_file_is_not_touched(home, new):
    place = home.ollama.place(f"sha256:{new.linked[0].sha256}")
    place.write_bytes(b"half")

    with pytest.raises(OutputError, match="exists") as refused:
        write(new, home)
    assert f"rm {place}" in (refused.value.hint or "")
    assert place.read_bytes() == b"half"
    assert [str(named.name) for named in all_named(home.ollama.home)] == ["other:latest"]


def test_a_store_that_may_not_be_written_to_is_refused_before_anything(home, new, monkeypatch):
    monkeypatch.setattr(ollama_writer.os, "access", lambda *args: False)
    before = contents(home.ollama.home)

    with pytest.raises(OutputError, match="you may not write") as refused:
        write(new, home)
    assert "--copy" in (refused.value.hint or "")
    assert contents(home.ollama.home) == before


@pytest.mark.lasting
def test_a_kill_leaves_no_name_without_its_blobs_and_the_same_call_does_the_rest(home, new):
    before = contents(home.ollama.home)
    kills = 0
    for _ in killed_at_each_change(lambda: write(new, home)):
        kills += 1
        for named in all_named(home.ollama.home):
            manifest = read_manifest(named.path, named.home)
            assert all(manifest.file(layer) for layer in manifest.layers)
        names = {path.name for path in (home.ollama.home / "manifests").glob("*/*/*/*")}
        assert names <= {"latest", "Q8_0"}  # Ollama reads all files at this depth
        write(new, home)
        assert ollama_gguf("ollama:cat:Q8_0").samefile(new.linked[0].path)
        assert not list(home.ollama.home.rglob("*.partial"))
        undo(home, before)
    assert kills >= 8


def undo(home: OtherHome, before: dict[str, object]) -> None:
    """Delete what was added to Ollama's store."""
    for name in set(contents(home.ollama.home)) - set(before):
        (home.ollama.home / name).unlink()
