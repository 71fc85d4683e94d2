"""Projectors: what lets a model see is loaded and shown a picture before it is called right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from exporter.core.errors import VerifyError
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.merge_plan import plan_merge
from exporter.verify.full import verify_full
from exporter.verify.pictures import judge, verify_pictures
from exporter.verify.projector import expected_projector, verify_projector
from exporter.verify.verification import Verification
from tests.support.mutate import set_number
from tests.support.verified import check, values_of
from tests.support.vision import make_seeing

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

TOWERS = ("gemma3_vlm", "pixtral", "qwen2_5_vl")
TOKENS = {"gemma3_vlm": 4, "pixtral": 8 * 8 + 7, "qwen2_5_vl": 64}


@pytest.fixture(scope="module")
def seeing(toolchain, tmp_path_factory) -> dict[str, Path]:
    """For each tower a folder with base/, m.gguf and mmproj-base.gguf. Treat as read-only."""
    folders = {}
    for name in TOWERS:
        folders[name] = folder = tmp_path_factory.mktemp(name)
        make_seeing(name, folder / "base")
        export(ExportRequest((), folder / "base", ("Q8_0",), (folder / "m.gguf",)), toolchain)
    return folders


def verified(folder: Path, projector: Path, toolchain) -> Verification:
    plan = plan_merge(open_checkpoint(folder / "base"), [])
    with expected_projector(plan, toolchain) as expected:
        return verify_projector(projector, folder / "m.gguf", expected, toolchain)


@pytest.fixture
def copied(seeing, tmp_path):
    """A tower's projector to be damaged."""

    def copied(name: str) -> Path:
        return Path(shutil.copy(seeing[name] / "mmproj-base.gguf", tmp_path / "mmproj-m.gguf"))

    return copied


def rename_tensor(path: Path, name: str, other: str) -> None:
    assert len(name) == len(other)
    raw = path.read_bytes()
    assert raw.count(name.encode()) == 1
    path.write_bytes(raw.replace(name.encode(), other.encode()))


@pytest.mark.parametrize("name", TOWERS)
def test_a_right_projector_is_loaded_and_shown_a_picture(seeing, toolchain, name):
    found = verified(seeing[name], seeing[name] / "mmproj-base.gguf", toolchain)

    found.refuse()
    assert check(found, "loading").numbers["tokens"] == TOKENS[name]


@pytest.mark.parametrize("name", TOWERS)
def test_a_picture_is_to_llama_cpp_what_it_is_to_transformers(seeing, toolchain, name):
    plan = plan_merge(open_checkpoint(seeing[name] / "base"), [])

    found = verify_pictures(
        seeing[name] / "mmproj-base.gguf", seeing[name] / "m.gguf", plan, toolchain
    )

    assert found.problems == ()
    assert found.judged
    assert found.numbers["embeddings_off"] < 0.005


def test_a_projector_that_gives_nothing_but_zeros_gives_them_in_both():
    zeros = np.zeros((4, 8), np.float32)

    assert judge(zeros, zeros, {"F32"}).problems == ()
    assert judge(zeros + 1, zeros, {"F32"}).problems
    assert judge(zeros * np.nan, zeros + 1, {"F32"}).problems


def test_the_text_of_a_model_that_sees_is_compared_too(seeing, toolchain):
    folder = seeing["qwen2_5_vl"]
    plan = plan_merge(open_checkpoint(folder / "base"), [])

    found = verify_full(folder / "m.gguf", plan, [[1, *range(3, 60)]], toolchain)

    assert (found.problems, found.judged) == ((), True)
    assert found.numbers["tokens"] == 57


def test_pixtrals_without_the_token_between_lines_is_wrong(seeing, copied, toolchain):
    path = copied("pixtral")
    rename_tensor(path, "v.token_embd.img_break", "v.token_embd.img_brake")

    found = verified(seeing["pixtral"], path, toolchain)

    assert "`v.token_embd.img_break` is missing" in check(found, "weights").problems
    (told,) = check(found, "loading").problems
    assert "img_break" in told
    with pytest.raises(VerifyError, match="img_break"):
        found.refuse()


def test_a_projector_that_llama_cpp_takes_apart_otherwise_is_wrong(seeing, copied, toolchain):
    path = copied("gemma3_vlm")
    set_number(path, "clip.vision.block_count", 2)
    (told,) = check(verified(seeing["gemma3_vlm"], path, toolchain), "loading").problems
    assert "cannot load" in told

    path = copied("pixtral")
    set_number(path, "clip.vision.block_count", 2)  # of 3: it loads, and sees otherwise
    found = verified(seeing["pixtral"], path, toolchain)
    assert check(found, "loading").ok
    assert "clip.vision.block_count is 2 and should be 3" in check(found, "settings").problems


def test_another_models_projector_is_wrong(seeing, toolchain):
    found = verified(seeing["gemma3_vlm"], seeing["pixtral"] / "mmproj-base.gguf", toolchain)

    assert check(found, "weights").problems
    assert any("clip.projector_type" in told for told in check(found, "settings").problems)


def test_values_that_are_not_finite_come_out_of_a_picture(seeing, copied, toolchain):
    path = copied("pixtral")
    values_of(path, "v.pre_ln.weight").view(np.float32)[:] = np.inf

    found = verified(seeing["pixtral"], path, toolchain)

    assert "not finite" in check(found, "loading").problems[0]


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("pixtral", "clip.vision.attention.layer_norm_epsilon", 1.0),
        ("gemma3_vlm", "clip.vision.attention.head_count", 1),
        ("qwen2_5_vl", "clip.vision.attention.layer_norm_epsilon", 1.0),
    ],
)
def test_a_tower_that_computes_otherwise_is_seen_by_its_pictures(
    seeing, copied, toolchain, name, key, value
):
    path = copied(name)
    set_number(path, key, value)
    plan = plan_merge(open_checkpoint(seeing[name] / "base"), [])

    found = verify_pictures(path, seeing[name] / "m.gguf", plan, toolchain)

    assert "off transformers'" in found.problems[0]


def test_an_export_says_of_the_projector_that_it_is_right(seeing, toolchain, tmp_path):
    told: list[str] = []
    request = ExportRequest(
        (), seeing["pixtral"] / "base", ("Q8_0",), (tmp_path / "m.gguf",), verify=True
    )

    result = export(request, toolchain, report=lambda event: told.append(str(event)))

    assert [found.path.name for found in result.verified] == ["m.gguf", "mmproj-base.gguf"]
    assert any("mmproj-base.gguf is right" in text for text in told)


def test_an_export_takes_the_name_of_a_projector_that_does_not_load(
    seeing, toolchain, tmp_path, monkeypatch
):
    """As upstream's converter writes Pixtral's today, without the token between lines."""
    monkeypatch.setattr(
        "exporter.convert.lazy_source.breaking_embedding", lambda name, hparams: None
    )
    request = ExportRequest(
        (), seeing["pixtral"] / "base", ("Q8_0",), (tmp_path / "m.gguf",), verify=True
    )

    with pytest.raises(VerifyError, match=r"cannot load .* beside the model"):
        export(request, toolchain)

    assert {path.name for path in tmp_path.iterdir()} == {"m.gguf", "mmproj-base.gguf.rejected"}


def test_the_command_verifies_what_lies_beside_the_model(warm_decant, seeing, tmp_path):
    folder = seeing["gemma3_vlm"]
    for name in ("m.gguf", "mmproj-base.gguf"):
        shutil.copy(folder / name, tmp_path / name)
    set_number(tmp_path / "mmproj-base.gguf", "clip.vision.attention.head_count", 1)
    arguments = ("verify", tmp_path / "m.gguf", "--base", folder / "base", "--light", "--json")

    wrong = warm_decant(*arguments)
    (tmp_path / "mmproj-base.gguf").unlink()
    alone = warm_decant(*arguments)

    assert wrong.returncode == 7
    names = [one["name"] for one in json.loads(wrong.stdout)["checks"]]
    assert names[-3:] == ["projector weights", "projector settings", "projector loading"]
    assert alone.returncode == 0
    assert not json.loads(alone.stdout)["checks"][-1]["judged"]
