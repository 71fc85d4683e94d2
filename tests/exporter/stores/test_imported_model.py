"""A model is imported by links, after its bytes were checked; a kill leaves nothing wrong."""

from __future__ import annotations

import errno
import os

import pytest

from exporter.core.errors import InputError, ModelError, OutputError, UnsupportedError
from exporter.core.events import Note, Warn, silent
from exporter.core.gguf import read_gguf
from exporter.model_store import find_local, list_gone, list_models, own_bytes
from exporter.stores import file_link
from exporter.stores.all_stores import find_other, other_models, rows
from exporter.stores.imported_model import Imported, import_model
from exporter.stores.ollama_settings import say_settings
from tests.support.killed_calls import killed_at_each_change
from tests.support.other_stores import (
    MODEL,
    add_to_hub,
    add_to_lmstudio,
    contents,
    gguf,
)
from tests.support.upload_stage import write_gguf, write_split


def brought(home, program, name, chosen=None, report=silent) -> Imported:
    model, _ = find_other(program, name, os.environ)
    return import_model(model, home.store, chosen, report=report)


def test_a_model_of_ollamas_gets_a_second_name(home):
    blob = home.ollama.add("llama3.2", "1b")
    before = contents(home.path)

    made = brought(home, "ollama", "llama3.2:1b")

    assert made.path == home.store / "llama3.2-1b-Q8_0.gguf"
    assert made.path.samefile(blob)
    assert not made.path.is_symlink()
    assert contents(home.path) == before
    assert [model.full_name for model in list_models(home.store)] == ["llama3.2-1b-Q8_0"]


def test_it_stays_when_ollama_deletes_its_own(home):
    blob = home.ollama.add("cat")
    made = brought(home, "ollama", "cat")
    blob.unlink()

    assert read_gguf(made.path).architecture == "llama"


@pytest.mark.parametrize(
    ("chosen", "full"),
    [(None, "cat-Q8_0"), ("mine", "mine-Q8_0"), ("mine-Q4_K_M", "mine-Q4_K_M"),
     ("../../x", "x-Q8_0"), ("a b/c", "a-b-c-Q8_0"), ("n" * 300, "n" * 176 + "-Q8_0")],
)  # fmt: skip
def test_the_name_is_the_models_or_the_chosen_one(home, chosen, full):
    home.ollama.add("cat")

    assert brought(home, "ollama", "cat", chosen).path == home.store / f"{full}.gguf"


def test_names_of_files_keep_their_quantization(home):
    add_to_lmstudio(home.lmstudio, "org/Cat/Cat-UD-Q4_K_XL.gguf", "org/Dog/Dog.Q8_0.gguf")

    assert brought(home, "lmstudio", "Cat").name == "Cat-UD-Q4_K_XL-Q8_0"
    assert brought(home, "lmstudio", "Dog").name == "Dog-Q8_0"


def test_a_second_import_says_that_it_is_here(home):
    home.ollama.add("cat")
    first = brought(home, "ollama", "cat")
    said = []

    again = brought(home, "ollama", "cat", report=said.append)

    assert (again.path, again.kind) == (first.path, "same")
    assert Note("the store has it already: cat-Q8_0") in said


def test_a_taken_name_is_refused_with_the_way_to_another(home):
    home.ollama.add("cat")
    add_to_lmstudio(home.lmstudio, "org/cat/cat.gguf")
    made = brought(home, "ollama", "cat")
    before = made.path.read_bytes()

    with pytest.raises(OutputError) as refused:
        brought(home, "lmstudio", "cat")
    assert refused.value.hint == (
        "`decant import --from lmstudio org/cat/cat.gguf --as NAME` gives it another name"
    )
    assert made.path.read_bytes() == before
    assert brought(home, "lmstudio", "cat", "other").name == "other-Q8_0"


def test_of_a_refused_model_no_part_is_linked(home):
    home.ollama.add("eye", projector=gguf(home.path, "eye", general_architecture="clip"))
    taken = write_gguf(home.store / "eye-Q8_0.gguf", MODEL)

    with pytest.raises(OutputError, match="exists"):
        brought(home, "ollama", "eye")
    assert list(home.store.iterdir()) == [taken]


@pytest.mark.parametrize("program", ["ollama", "hf"])
def test_bytes_that_are_not_those_of_the_hash_are_refused(home, program):
    if program == "ollama":
        blob = home.ollama.add("cat")
    else:
        snapshot = add_to_hub(home.cache, "cat", {"cat-Q8_0.gguf": gguf(home.path)})
        blob = (snapshot / "cat-Q8_0.gguf").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    name = "cat" if program == "ollama" else "cat/cat-Q8_0.gguf"

    with pytest.raises(ModelError, match="is damaged: its sha256 is") as refused:
        brought(home, program, name)
    assert "again" in (refused.value.hint or "")
    assert list_models(home.store) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"ggml" + bytes(60), "is no GGUF"), (b"GGUF", "is not a whole GGUF")],
)
def test_what_is_no_gguf_is_refused(home, content, said):
    (path,) = add_to_lmstudio(home.lmstudio, "org/cat/cat.gguf")
    path.write_bytes(content)

    with pytest.raises(InputError, match=said):
        brought(home, "lmstudio", "cat")


@pytest.mark.parametrize("keys", [{"general_type": "adapter"}, {"general_architecture": "clip"}])
def test_adapters_and_projectors_are_no_models(home, keys):
    (path,) = add_to_lmstudio(home.lmstudio, "org/cat/cat.gguf")
    path.write_bytes(gguf(home.path, **keys))

    with pytest.raises(ModelError, match="is no model"):
        brought(home, "lmstudio", "cat")


def test_a_checkpoint_is_refused_with_the_command_that_exports_it(home):
    add_to_hub(home.cache, "org/base", {"config.json": b"{}", "model.safetensors": b"x"})
    model = next(model for model in other_models(os.environ) if model.name == "org/base")

    with pytest.raises(UnsupportedError) as refused:
        import_model(model, home.store, report=silent)
    assert refused.value.hint == "`decant export - --base org/base`"


def test_a_projector_and_an_adapter_come_along(home):
    home.ollama.add(
        "eye",
        projector=gguf(home.path, "projector", general_architecture="clip"),
        adapter=gguf(home.path, "adapter", general_type="adapter"),
    )
    said = []

    made = brought(home, "ollama", "eye", report=said.append)

    names = sorted(path.name for path in home.store.iterdir())
    assert names == ["eye-Q8_0.gguf", "eye.lora.gguf", "mmproj-eye-Q8_0.gguf"]
    warnings = [event.message for event in said if isinstance(event, Warn)]
    assert len(warnings) == 1
    assert f"decant chat eye-Q8_0 --adapter {made.adapters[0]}" in warnings[0]


def test_all_parts_of_a_split_model_are_linked(home):
    folder = home.lmstudio / "org" / "Big"
    parts = write_split(folder, "Big")

    made = brought(home, "lmstudio", "Big", "large-Q8_0")

    assert made.path.name == "large-Q8_0-00001-of-00003.gguf"
    assert read_gguf(made.path).nbytes == sum(part.stat().st_size for part in parts)
    assert [model.full_name for model in list_models(home.store)] == ["large-Q8_0"]


def across_disks(*args: object, **kwargs: object) -> None:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_on_another_disk_it_is_a_symbolic_link_and_says_when_it_dies(home, monkeypatch):
    blob = home.ollama.add("cat")
    monkeypatch.setattr(file_link.os, "link", across_disks)
    said = []

    made = brought(home, "ollama", "cat", report=said.append)

    assert (made.kind, made.path.readlink()) == ("symbolic", blob)
    assert any("is gone when Ollama deletes that file" in str(event) for event in said)
    blob.unlink()
    assert [model.full_name for model in list_gone(home.store)] == ["cat-Q8_0"]
    with pytest.raises(ModelError, match=r"is a link to .* which is gone") as refused:
        find_local("cat", home.store)
    assert "decant rm cat-Q8_0" in (refused.value.hint or "")


def test_a_dead_link_keeps_its_name_until_it_is_removed(home, monkeypatch):
    blob = home.ollama.add("cat")
    monkeypatch.setattr(file_link.os, "link", across_disks)
    made = brought(home, "ollama", "cat")
    blob.unlink()
    add_to_lmstudio(home.lmstudio, "org/cat/cat.gguf")

    with pytest.raises(OutputError, match="which is gone") as refused:
        brought(home, "lmstudio", "cat")
    assert "`decant rm cat-Q8_0` deletes the link" in (refused.value.hint or "")
    assert made.path.is_symlink()


def test_a_store_that_is_read_only_is_told(home, monkeypatch):
    home.ollama.add("cat")

    def refused_link(*args: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(file_link.os, "link", refused_link)
    monkeypatch.setattr(file_link.Path, "symlink_to", refused_link)
    with pytest.raises(OutputError, match="cannot write") as refused:
        brought(home, "ollama", "cat")
    assert "DECANT_STORE" in (refused.value.hint or "")


def test_the_bytes_of_a_shared_file_are_not_counted_as_freed(home):
    home.ollama.add("cat")
    made = brought(home, "ollama", "cat")

    assert own_bytes(made.path) == 0


@pytest.mark.lasting
def test_a_kill_leaves_whole_files_and_the_same_call_does_the_rest(home):
    home.ollama.add("eye", projector=gguf(home.path, "eye", general_architecture="clip"))
    kills = 0
    for _ in killed_at_each_change(lambda: brought(home, "ollama", "eye")):
        kills += 1
        for model in list_models(home.store):
            assert read_gguf(model.path).tensors
        assert brought(home, "ollama", "eye").path.exists()
        assert len(list(home.store.iterdir())) == 2
        for path in home.store.iterdir():
            path.unlink()
    assert kills >= 2


def test_the_list_shows_what_is_here_already(home):
    home.ollama.add("cat")
    home.ollama.add("dog's")
    brought(home, "ollama", "cat", "mine")
    shown = {row["name"]: row["to_import"] for row in rows(other_models({}), home.store)}

    assert shown["cat:latest"] == "here as mine-Q8_0"


class TestSettings:
    """Ollama's template and parameters are not taken; the options for the same are shown."""

    def said(self, home, keys=MODEL, **layers) -> list[str]:
        store = home.ollama
        content = gguf(home.path, "set", **{k.replace(".", "_", 1): v for k, v in keys.items()})
        blobs = [store.layer("model", content)]
        blobs += [store.layer(kind, text) for kind, text in layers.items()]
        store.name("registry.ollama.ai/library/set/latest", store.manifest(blobs))
        model, manifest = find_other("ollama", "set", os.environ)
        events = []
        header = read_gguf(model.files[0].path)
        say_settings(manifest, header, "set", report=events.append)
        return [event.message for event in events]

    def test_parameters_are_options_of_chat(self, home):
        params = (
            b'{"temperature":0.6,"stop":["<|eot|>","it\'s"],"num_ctx":4096,"odd":[1],"seed":true}'
        )
        (line,) = self.said(home, params=params)

        assert line == (
            "with Ollama's settings: decant chat set --temperature 0.6 --stop '<|eot|>'"
            " --stop 'it'\"'\"'s' --ctx 4096"
        )

    @pytest.mark.parametrize("params", [b"", b"[]", b"no", b"[" * 100_000, b"\xff"])
    def test_damaged_parameters_are_left_out(self, home, params):
        assert self.said(home, params=params) == []

    def test_a_system_message_is_cut_and_cleaned(self, home):
        (line,) = self.said(home, system=b"\x1b[31mBe " + b"x" * 500)

        assert "--system" in line
        assert "\x1b" not in line
        assert len(line) < 200

    def test_a_template_matters_where_the_gguf_has_none(self, home):
        assert "--chat-template" in self.said(home, template=b"{{ .Prompt }}")[0]

    def test_the_template_in_the_gguf_is_preferred(self, home):
        keys = {"tokenizer.chat_template": "{{ messages }}"}
        assert self.said(home, keys, template=b"x") == [
            "decant uses the chat template in the GGUF, not Ollama's TEMPLATE"
        ]

    def test_other_layers_are_named(self, home):
        assert self.said(home, draft=b"x", license=b"y", messages=b"[]") == [
            "not taken: a draft model",
            "not taken: the messages it begins with",
        ]
