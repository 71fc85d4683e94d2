from __future__ import annotations

from pathlib import Path

import pytest

from exporter.core.atomic_file import sha256_file
from exporter.core.events import Event, silent
from exporter.core.gguf import read_gguf
from exporter.formats.gguf_card import files_in, is_ours
from exporter.hub.endpoints import parse_endpoint
from exporter.hub.upload.remote_repo import RemoteFile, RemoteRepo
from exporter.share.shared_card import SharedCard, base_of, carried_of
from exporter.share.shared_files import shared_models
from exporter.verify.verification import Check, Verification
from exporter.verify.verified_record import record
from tests.support.upload_stage import MADE, write_gguf

REPO = "me/m-GGUF"


def card_of(*paths: Path, **more: object) -> SharedCard:
    models = shared_models([str(path) for path in paths], paths[0].parent, report=silent)
    values = {"overwrite": False, "evaluation": lambda _: "", "report": silent, **more}
    return SharedCard(models, REPO, parse_endpoint("https://huggingface.co"), **values)


def hashes(*paths: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in paths}


def remote(*paths: Path) -> RemoteRepo:
    files = {p.name: RemoteFile(p.stat().st_size, sha256_file(p), "") for p in paths}
    return RemoteRepo("c0ffee", is_private=False, files=files)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "m-Q4_K_M.gguf")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = write_gguf(tmp_path / "m-Q8_0.gguf", size=8192)
    record(Verification(path, (Check("weights", (), "12 tensors"),), 0.1))
    return path


def test_the_verification_is_in_the_card(large: Path):
    text = card_of(large).text(None, hashes(large), None)

    assert "| `m-Q8_0.gguf` | weights | right | 12 tensors |" in text


def test_what_was_known_of_other_files_stays_known(small: Path, large: Path):
    old = card_of(large).text(None, hashes(large), None)

    text = card_of(small).text(remote(large), hashes(small), old)

    assert [file.name for file in files_in(text)] == ["m-Q4_K_M.gguf", "m-Q8_0.gguf"]
    assert "| `m-Q8_0.gguf` | weights | right | 12 tensors |" in text


def test_what_was_known_of_another_content_is_dropped(small: Path, large: Path):
    old = card_of(large).text(None, hashes(large), None)
    write_gguf(large, size=16384)

    text = card_of(small).text(remote(large), hashes(small), old)

    assert [file.name for file in files_in(text)] == ["m-Q4_K_M.gguf", "m-Q8_0.gguf"]
    assert "12 tensors" not in text


def test_the_card_is_the_same_the_second_time(small: Path, large: Path):
    card = card_of(small, large)
    first = card.text(None, hashes(small, large), None)

    assert card.text(remote(small, large), hashes(small, large), first) == first


@pytest.mark.parametrize("old", ["# Mine\n", ""])
def test_a_readme_that_decant_did_not_write_is_kept_and_said_once(small: Path, old: str):
    seen: list[Event] = []
    card = card_of(small, report=seen.append)

    assert card.text(remote(), hashes(small), old) is None
    assert card.text(remote(), hashes(small), old) is None
    (warning,) = seen
    assert "--overwrite-card` replaces it" in warning.message


def test_a_readme_that_was_changed_is_kept(small: Path):
    old = card_of(small).text(None, hashes(small), None)

    assert card_of(small).text(remote(), hashes(small), old + "Thanks!\n") is None


def test_a_readme_is_replaced_on_demand(small: Path):
    text = card_of(small, overwrite=True).text(remote(), hashes(small), "# Mine\n")

    assert is_ours(text)


def test_an_evaluation_stays_until_there_is_a_new_one(small: Path):
    first = card_of(small, evaluation=lambda _: "## Evaluation\n\n81 %\n")
    old = first.text(None, hashes(small), None)

    kept = card_of(small).text(remote(small), hashes(small), old)
    renewed = card_of(small, evaluation=lambda _: "## Evaluation\n\n90 %\n")

    assert "81 %" in kept
    assert "81 %" not in renewed.text(remote(small), hashes(small), old)


def test_no_path_of_this_machine_is_in_the_card(small: Path, large: Path):
    text = card_of(small, large).text(None, hashes(small, large), None)

    assert str(small.parent) not in text


@pytest.mark.parametrize(
    ("keys", "base"),
    [
        ({"decant.base.repo": "org/a", "decant.adapter.trained_on": "org/b"}, "org/a"),
        (
            {"decant.base": "a", "decant.adapter": "x", "decant.adapter.trained_on": "org/b"},
            "org/b",
        ),
        ({"general.base_model.0.repo_url": "https://huggingface.co/org/c"}, "org/c"),
        ({"decant.base": "a", "decant.adapter.trained_on": "folder"}, ""),
    ],
)
def test_the_base_is_named_if_the_file_knows_it(tmp_path: Path, keys: dict[str, str], base: str):
    path = write_gguf(tmp_path / "x.gguf", {"general.architecture": "llama", **keys})

    assert base_of(read_gguf(path)) == base


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("apache-2.0", {"license": "apache-2.0"}),
        ("My Own Licence", {"license": "other", "license_name": "my-own-licence"}),
    ],
)
def test_a_licence_is_one_that_the_hub_knows(
    tmp_path: Path, licence: str, expected: dict[str, str]
):
    path = write_gguf(tmp_path / "x.gguf", {**MADE, "general.license": licence})

    assert carried_of(read_gguf(path)) == expected


def test_a_file_that_decant_did_not_make_has_a_card_too(tmp_path: Path):
    path = write_gguf(tmp_path / "x-Q8_0.gguf", {"general.architecture": "llama"})

    text = card_of(path).text(None, hashes(path), None)

    assert "GGUFs, published by decant." in text
    assert "## Provenance" not in text


def test_made_keys_are_an_exports(small: Path):
    assert read_gguf(small).text("decant.base") == MADE["decant.base"]
