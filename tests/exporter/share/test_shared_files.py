from __future__ import annotations

from pathlib import Path

import pytest

from exporter.core.errors import InputError, ModelError, UnsupportedError, VerifyError
from exporter.core.events import silent
from exporter.share.shared_files import shared_models, upload_files
from exporter.verify.verification import Check, Verification
from exporter.verify.verified_record import record
from tests.support.upload_stage import MADE, write_gguf, write_split

CLIP = {**MADE, "general.architecture": "clip"}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two quantizations of a model, one of another."""
    for name in ("m-Q4_K_M", "m-Q8_0", "other-Q8_0"):
        write_gguf(tmp_path / f"{name}.gguf", {**MADE, "decant.adapter": name.partition("-")[0]})
    return tmp_path


def names(*texts: object, store: Path, verify: bool = True) -> list[str]:
    models = shared_models([str(text) for text in texts], store, verify=verify, report=silent)
    return [file.name for file in upload_files(models, report=silent)]


def verdict(path: Path, *problems: str) -> None:
    record(Verification(path, (Check("weights", problems, "12 tensors"),), 0.1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m", ["m-Q4_K_M.gguf", "m-Q8_0.gguf"]),
        ("m-Q8_0", ["m-Q8_0.gguf"]),
        ("m:Q8_0", ["m-Q8_0.gguf"]),
        ("m-Q8_0.gguf", ["m-Q8_0.gguf"]),
    ],
)
def test_a_stored_model_is_named_as_everywhere(store: Path, text: str, expected: list[str]):
    assert names(text, store=store) == expected


def test_a_file_is_named_by_its_path_and_sent_once(store: Path):
    path = store / "m-Q8_0.gguf"

    assert names(path, "m-Q8_0", store=store) == ["m-Q8_0.gguf"]


def test_a_split_model_goes_whole(store: Path):
    paths = write_split(store, "big-Q8_0")

    assert names("big", store=store) == [path.name for path in paths]


def test_a_split_model_with_a_missing_part_is_refused(store: Path):
    write_split(store, "big-Q8_0")[1].unlink()

    with pytest.raises(ModelError, match=r"00002-of-00003\.gguf` is missing"):
        names("big", store=store)


def test_a_projector_goes_along_with_its_model_only(store: Path):
    write_gguf(store / "mmproj-m.gguf", CLIP)
    write_gguf(store / "mmproj-same.gguf", {**CLIP, "decant.adapter": "m"})
    write_gguf(store / "mmproj-else.gguf", {**CLIP, "decant.adapter": "else"})

    assert names("m-Q8_0", store=store) == ["m-Q8_0.gguf", "mmproj-m.gguf", "mmproj-same.gguf"]
    assert names("other", store=store) == ["other-Q8_0.gguf"]


def test_a_projector_alone_is_refused(store: Path):
    path = write_gguf(store / "mmproj-x.gguf", CLIP)

    with pytest.raises(UnsupportedError, match="is a projector, which belongs to a model"):
        names(path, store=store)


def test_a_modelfile_goes_along_if_it_is_of_the_model(store: Path):
    folder = store / "ollama"
    write_gguf(folder / "m.gguf")
    (folder / "Modelfile").write_text("FROM ./m.gguf\nTEMPLATE x\n")
    for name in ("template", "notes.txt"):
        (folder / name).write_text("{{ .Prompt }}")

    assert names(folder, store=store) == ["m.gguf", "Modelfile", "template"]


@pytest.mark.parametrize("content", ["FROM ./other.gguf\n", "FROM llama3\n", "", "\xff"])
def test_a_modelfile_of_something_else_stays(store: Path, content: str):
    (store / "Modelfile").write_bytes(content.encode("latin-1"))
    (store / "system").write_text("private")

    assert names("m-Q8_0", store=store) == ["m-Q8_0.gguf"]


def test_two_files_of_one_name_are_refused(store: Path):
    other = write_gguf(store / "elsewhere" / "m-Q8_0.gguf")

    with pytest.raises(InputError, match="have the same name"):
        names("m", other, store=store)


@pytest.mark.parametrize(
    ("text", "error", "hint"),
    [
        ("mm", ModelError, "did you mean m"),
        ("", ModelError, "shell"),
        ("./no.gguf", ModelError, "is the path right"),
        ("some/where.gguf", ModelError, "is the path right"),
        ("org/repo", UnsupportedError, "decant push takes GGUFs"),
    ],
)
def test_what_is_no_model_says_what_can_be_pushed(
    store: Path, text: str, error: type[InputError], hint: str
):
    with pytest.raises(error) as stopped:
        names(text, store=store)

    assert hint in (stopped.value.hint or "")


def test_a_folder_without_a_gguf_is_refused_with_the_way_to_publish_it(store: Path):
    folder = store / "merged"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")

    with pytest.raises(UnsupportedError) as stopped:
        names(folder, store=store)

    assert f"hf upload ORG/NAME {folder}" in stopped.value.hint


def test_a_file_whose_verification_failed_is_refused(store: Path):
    verdict(store / "m-Q8_0.gguf", "blk.0 differs")

    with pytest.raises(VerifyError, match=r"failed its verification: blk\.0 differs") as stopped:
        names("m", store=store)

    assert "--no-verify" in stopped.value.hint
    assert len(names("m", store=store, verify=False)) == 2


@pytest.mark.parametrize("text", ["m-Q6_K", "new", "./{store}/m-Q6_K.gguf.rejected"])
def test_a_rejected_file_is_refused(store: Path, text: str):
    for name in ("m-Q6_K", "new-Q6_K"):
        write_gguf(store / f"{name}.gguf").rename(store / f"{name}.gguf.rejected")

    with pytest.raises(VerifyError, match="failed its verification") as stopped:
        names(text.replace("./{store}", str(store)), store=store)

    assert "rename it to" in stopped.value.hint


def test_a_record_follows_the_file_and_ends_with_its_content(store: Path):
    path = store / "m-Q8_0.gguf"
    verdict(path, "blk.0 differs")
    moved = path.rename(store / "moved-Q8_0.gguf")

    with pytest.raises(VerifyError):
        names("moved", store=store)
    write_gguf(moved, size=8192)
    assert names("moved", store=store) == ["moved-Q8_0.gguf"]
