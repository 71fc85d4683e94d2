from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from exporter.adapter import AdapterSpec
from exporter.core.errors import AdapterError, DownloadError, ModelError
from exporter.core.folders import model_name
from exporter.download.endpoints import parse_endpoint
from exporter.download.resolve import Hub, choose_gguf, is_repo, pull_checkpoint, pull_gguf
from exporter.download.token import TokenRule
from exporter.pipeline import ExportRequest, find_base
from exporter.store import find_model
from tests.conftest import Decant
from tests.download.rows import Stage
from tests.fakes.hub import REPO, FakeFile

pytestmark = pytest.mark.faults  # a hub, sockets and processes: seconds in all


@pytest.fixture
def hub(stage: Stage) -> Hub:
    return Hub((parse_endpoint(stage.a.url),), stage.cache, TokenRule(), offline=False)


@pytest.mark.parametrize("text", ["org/name", "org/name-GGUF:Q4_K_M", "https://hf.co/org/name"])
def test_repo_is_told_from_a_path(text: str):
    assert is_repo(text)


@pytest.mark.parametrize("text", ["./org/name", "/abs/x", "name", "a/b/c", "exporter/download"])
def test_path_is_no_repo(text: str):
    assert not is_repo(text)


def test_checkpoint_comes_without_other_frameworks_files(stage: Stage, hub: Hub):
    stage.a.files |= {
        name: FakeFile(b"x") for name in ("pytorch_model.bin", "original/x.json", "onnx/m.onnx")
    }
    folder = pull_checkpoint(REPO, hub=hub)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_pickled_checkpoint_comes_when_there_is_no_other(stage: Stage, hub: Hub):
    stage.a.files = {"pytorch_model.bin": FakeFile(b"x"), "config.json": FakeFile(b"{}")}
    assert (pull_checkpoint(REPO, hub=hub) / "pytorch_model.bin").exists()


def test_quant_picks_the_gguf(stage: Stage, hub: Hub):
    stage.a.files = {
        f"M-{quant}.gguf": FakeFile(b"GGUF" + quant.encode()) for quant in ("Q4_K_M", "Q8_0")
    }
    assert pull_gguf(f"{REPO}:q8_0", hub=hub).read_bytes() == b"GGUFQ8_0"
    assert pull_gguf(REPO, hub=hub).name == "M-Q4_K_M.gguf"


def test_split_gguf_comes_whole(stage: Stage, hub: Hub):
    names = [f"big/M-Q4_K_M-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    stage.a.files = {name: FakeFile(b"GGUF" + name.encode()) for name in (*names, "x.gguf")}
    path = pull_gguf(f"{REPO}:Q4_K_M", hub=hub)
    assert path.name == "M-Q4_K_M-00001-of-00003.gguf"
    assert len(list(path.parent.iterdir())) == 3


def test_link_to_a_gguf_pulls_that_one(stage: Stage, hub: Hub):
    stage.a.files = {"a.gguf": FakeFile(b"GGUFa"), "b.gguf": FakeFile(b"GGUFb")}
    link = f"https://huggingface.co/{REPO}/blob/main/b.gguf"
    assert pull_gguf(link, hub=hub).read_bytes() == b"GGUFb"


def test_quant_that_is_not_there_names_those_that_are():
    names = ["M-Q8_0.gguf", "M-IQ4_XS.gguf", "mmproj-M-F16.gguf"]
    with pytest.raises(ModelError, match="has no GGUFs of Q4_K_M") as caught:
        choose_gguf("o/n", names, "")
    assert caught.value.hint == "it has M-IQ4_XS, M-Q8_0"


def test_partial_use_does_not_pass_for_the_whole_repo(stage: Stage, hub: Hub):
    stage.a.files["x.gguf"] = FakeFile(b"GGUF")
    pull_checkpoint(REPO, hub=hub)
    with pytest.raises(DownloadError, match=r"such as `x\.gguf`"):
        stage.pull(stage.a, offline=True)


def test_second_use_is_offline(stage: Stage, hub: Hub):
    pull_checkpoint(REPO, hub=hub)
    before = len(stage.a.requests)
    offline = Hub(hub.endpoints, hub.cache, hub.rule, offline=True)
    assert (pull_checkpoint(REPO, hub=offline) / "config.json").exists()
    assert len(stage.a.requests) == before


def test_gguf_of_the_repo_is_where_llama_cpp_looks(stage: Stage, hub: Hub):
    stage.a.files = {"m.gguf": FakeFile(b"GGUF")}
    assert pull_gguf(REPO, hub=hub).parent.parent == Path(
        stage.cache / "models--org--model" / "snapshots"
    )


@pytest.fixture
def here(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """The hub that the environment names."""
    monkeypatch.setenv("HF_ENDPOINT", stage.a.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(stage.cache))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(stage.cache))
    return stage


def adapter_of(base: str, folder: Path) -> AdapterSpec:
    return AdapterSpec(folder, {"base_model_name_or_path": base}, ())


def test_absent_base_is_pulled(here: Stage, tmp_path: Path):
    request = ExportRequest((), None, (), ())
    folder = find_base(request, adapter_of(REPO, tmp_path))
    assert (folder / "config.json").read_bytes() == b"{}"
    assert model_name(folder) == "model"


def test_absent_base_is_named_when_offline(
    here: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AdapterError, match="is not here"):
        find_base(ExportRequest((), None, (), ()), adapter_of(REPO, tmp_path))
    assert here.a.requests == []


def test_repo_of_ggufs_is_a_model(here: Stage, tmp_path: Path):
    here.a.files = {"M-Q8_0.gguf": FakeFile(b"GGUFx")}
    assert find_model(f"{REPO}:Q8_0", tmp_path).read_bytes() == b"GGUFx"


def test_command_line_pulls_the_model_it_is_asked_about(here: Stage, decant: Decant):
    here.a.files = {"M-Q8_0.gguf": FakeFile(b"GGUFx")}
    done = decant("inspect", f"{REPO}:Q8_0")
    assert (done.returncode, "M-Q8_0.gguf` is not a whole GGUF" in done.stderr) == (3, True)
