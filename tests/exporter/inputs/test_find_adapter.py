"""Where people have their adapters: in a file's name, a zip, under PEFT's names, in runs."""

from __future__ import annotations

import os
import zipfile

import pytest

from exporter.core.errors import AdapterError
from exporter.inputs.adapter import open_adapter
from tests.support.raw import write_adapter


def zipped(path, folder, *, above="", without=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.name not in without:
                archive.write(file, f"{above}{file.relative_to(folder)}")
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DECANT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_file_of_the_adapter_stands_for_its_folder(tmp_path, name):
    folder = write_adapter(tmp_path / "lora")

    adapter = open_adapter(folder / name)

    assert (adapter.folder, adapter.place, adapter.name) == (folder, folder, "lora")


def test_weights_of_another_name_are_read_with_the_config_beside_them(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    other = write_adapter(tmp_path / "other", width=4)
    (other / "adapter_model.safetensors").rename(folder / "best.safetensors")

    adapter = open_adapter(folder / "best.safetensors")

    assert adapter.pairs[0].a.shape == (2, 4)
    assert (adapter.name, adapter.place) == ("lora-best", folder / "best.safetensors")
    assert open_adapter(adapter.place).sha256() != open_adapter(folder).sha256()


def test_weights_without_a_config_are_told_what_they_lack(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    (folder / "adapter_config.json").unlink()

    with pytest.raises(AdapterError, match=r"adapter_config\.json` is missing.*rank and scale"):
        open_adapter(folder / "adapter_model.safetensors")


def test_a_file_of_no_adapter_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")

    with pytest.raises(AdapterError, match=r"notes\.txt` is not a file of an adapter"):
        open_adapter(tmp_path / "notes.txt")


@pytest.mark.parametrize("above", ["", "my-lora/", "my-lora/checkpoint-50/"])
def test_a_zip_is_unpacked_once(tmp_path, above):
    folder = write_adapter(tmp_path / "lora")
    path = zipped(tmp_path / "my-lora.zip", folder, above=above)
    said = []

    adapter = open_adapter(path, report=said.append)
    again = []
    open_adapter(path, report=again.append)

    assert adapter.sha256() == open_adapter(folder).sha256()
    assert adapter.name == ("my-lora" if "/" not in above[:-1] else "my-lora-checkpoint-50")
    assert any("unpacking" in event.message for event in said)
    assert not any("unpacking" in event.message for event in again)


def test_a_folder_inside_a_zip_is_named_by_its_path(tmp_path):
    for name in "ab":
        write_adapter(tmp_path / "run" / name)
    path = zipped(tmp_path / "run.zip", tmp_path / "run")

    with pytest.raises(AdapterError, match="2 adapters: a, b"):
        open_adapter(path)
    assert open_adapter(path / "b").name == "b"


def test_a_zip_with_the_backslashes_of_windows_is_unpacked(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for file in folder.iterdir():
            info = zipfile.ZipInfo("x")
            info.filename = f"my-lora\\{file.name}"
            archive.writestr(info, file.read_bytes())

    assert open_adapter(tmp_path / "x.zip").sha256() == open_adapter(folder).sha256()


def test_a_folder_that_may_not_be_read_is_passed_over(tmp_path, monkeypatch):
    """As the lost+found of a disk: where nobody but root may look."""
    write_adapter(tmp_path / "disk" / "pirate")
    (tmp_path / "disk" / "lost+found").mkdir()
    original = os.stat

    def stat(path, *args, **kwargs):
        if "lost+found/" in os.fspath(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)

    assert open_adapter(tmp_path / "disk").name == "pirate"


def test_what_macos_puts_into_a_zip_is_left_out(tmp_path):
    path = zipped(tmp_path / "x.zip", write_adapter(tmp_path / "lora"), above="lora/")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/lora/._adapter_config.json", b"\0")
        archive.writestr("lora/.DS_Store", b"\0")

    assert open_adapter(path).name == "lora"


@pytest.mark.parametrize(
    "name", ["../evil.json", "/tmp/evil.json", "a\\..\\evil.json", "link.json"]
)
def test_a_zip_whose_names_lead_out_of_it_is_refused(tmp_path, name):
    path = zipped(tmp_path / "x.zip", write_adapter(tmp_path / "lora"))
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo(name)
        info.filename = name
        info.external_attr = (0o120777 if name == "link.json" else 0o100644) << 16
        archive.writestr(info, b"../../evil")

    with pytest.raises(AdapterError, match="lies outside of it or is a link"):
        open_adapter(path)

    assert not list((tmp_path / "cache" / "unpacked").glob("*/*"))


def test_a_damaged_zip_is_named(tmp_path):
    path = zipped(tmp_path / "x.zip", write_adapter(tmp_path / "lora"))
    path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(AdapterError, match="cannot be unpacked"):
        open_adapter(path)


def test_another_archive_is_told_how_to_unpack_it(tmp_path):
    (tmp_path / "lora.tar.gz").write_bytes(b"")

    with pytest.raises(AdapterError) as caught:
        open_adapter(tmp_path / "lora.tar.gz")

    assert "tar xf" in caught.value.hint


def test_the_one_adapter_that_was_saved_under_a_name_is_taken_with_a_note(tmp_path):
    write_adapter(tmp_path / "run" / "pirate")
    said = []

    adapter = open_adapter(tmp_path / "run", report=said.append)

    assert adapter.folder == tmp_path / "run" / "pirate"
    assert any("`pirate`" in event.message for event in said)


def test_of_several_named_adapters_none_is_guessed(tmp_path):
    for name in ("train", "reference"):
        write_adapter(tmp_path / "run" / name)

    with pytest.raises(AdapterError, match="2 adapters: reference, train") as caught:
        open_adapter(tmp_path / "run")

    assert str(tmp_path / "run" / "reference") in caught.value.hint
    assert "--subfolder reference" in caught.value.hint
    assert open_adapter(tmp_path / "run" / "train").name == "train"


def test_a_checkpoint_with_a_named_adapter_counts_as_one(tmp_path):
    for step in (50, 100):
        write_adapter(tmp_path / "run" / f"checkpoint-{step}" / "pirate")

    adapter = open_adapter(tmp_path / "run")

    assert adapter.folder == tmp_path / "run" / "checkpoint-100" / "pirate"


def test_adapters_deeper_down_are_named_in_the_hint(tmp_path):
    write_adapter(tmp_path / "runs" / "monday" / "checkpoint-50")

    with pytest.raises(AdapterError, match="is missing") as caught:
        open_adapter(tmp_path / "runs")

    assert str(tmp_path / "runs" / "monday" / "checkpoint-50") in caught.value.hint


def test_a_misspelled_name_is_answered_with_those_that_are_there(tmp_path):
    write_adapter(tmp_path / "run" / "pirate")

    with pytest.raises(AdapterError) as caught:
        open_adapter(tmp_path / "run" / "pirat")

    assert "pirate" in caught.value.hint
