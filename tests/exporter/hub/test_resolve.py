from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from exporter.core.errors import AdapterError, DecantError, DownloadError, InputError, ModelError
from exporter.core.paths import model_name
from exporter.hub.access_token import TokenRule
from exporter.hub.endpoints import parse_endpoint
from exporter.hub.repo_refs import Ref
from exporter.hub.resolve import Hub, choose_gguf, folder_of, is_repo, pull_checkpoint, pull_gguf
from exporter.inputs.adapter_spec import AdapterSpec
from exporter.inputs.locate import Sources, absent, bring, find_base
from exporter.model_store import find_model
from tests.conftest import Decant
from tests.support.hub_files import REPO, FakeFile
from tests.support.hub_stage import Stage
from tests.support.raw import write_safetensors

pytestmark = pytest.mark.faults  # a hub, sockets and processes: seconds in all


@pytest.fixture
def hub(stage: Stage) -> Hub:
    return Hub((parse_endpoint(stage.a.url),), stage.cache, TokenRule(), offline=False)


@pytest.mark.parametrize("text", ["org/name", "org/name-GGUF:Q4_K_M", "https://hf.co/org/name"])
def test_repo_is_told_from_a_path(text: str):
    assert is_repo(text)


@pytest.mark.parametrize("text", ["./org/name", "/abs/x", "name", "a/b/c", "exporter/hub"])
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


def test_link_to_any_part_of_a_split_gguf_brings_all_and_gives_the_first(stage: Stage, hub: Hub):
    names = [f"M-0000{i}-of-00002.gguf" for i in (1, 2)]
    stage.a.files = {name: FakeFile(b"GGUF" + name.encode()) for name in reversed(names)}
    path = pull_gguf(f"{stage.a.url}/{REPO}/resolve/main/{names[1]}", hub=hub)
    assert path.name == names[0]
    assert sorted(file.name for file in path.parent.iterdir()) == names


def test_link_to_a_folder_chooses_among_its_ggufs(stage: Stage, hub: Hub):
    stage.a.files = {f"{folder}/M-Q4_K_M.gguf": FakeFile(b"GGUF") for folder in ("a", "b")}
    path = pull_gguf(f"https://huggingface.co/{REPO}/tree/main/b", hub=hub)
    assert path.parent.name == "b"


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
    monkeypatch.setenv("DECANT_CACHE", str(stage.folder / "decant"))
    monkeypatch.setenv("HF_HUB_CACHE", str(stage.cache))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(stage.cache))
    return stage


def adapter_of(base: str, folder: Path) -> AdapterSpec:
    return AdapterSpec(folder, {"base_model_name_or_path": base}, ())


def test_absent_base_is_pulled(here: Stage, tmp_path: Path):
    folder = find_base(adapter_of(REPO, tmp_path))
    assert (folder / "config.json").read_bytes() == b"{}"
    assert model_name(folder) == "model"


def test_absent_base_is_named_when_offline(
    here: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AdapterError, match="is not here"):
        find_base(adapter_of(REPO, tmp_path))
    assert here.a.requests == []


def test_repo_of_ggufs_is_a_model(here: Stage, tmp_path: Path):
    here.a.files = {"M-Q8_0.gguf": FakeFile(b"GGUFx")}
    assert find_model(f"{REPO}:Q8_0", tmp_path).read_bytes() == b"GGUFx"


def test_command_line_pulls_the_model_it_is_asked_about(here: Stage, decant: Decant):
    here.a.files = {"M-Q8_0.gguf": FakeFile(b"GGUFx")}
    done = decant("inspect", f"{REPO}:Q8_0")
    assert (done.returncode, "M-Q8_0.gguf` is not a whole GGUF" in done.stderr) == (3, True)


@pytest.mark.parametrize("link", [False, True])
def test_a_gguf_of_a_repo_may_be_the_base_or_the_adapter(here: Stage, link: bool):
    here.a.files = {
        f"M-{quant}.gguf": FakeFile(b"GGUF" + quant.encode()) for quant in ("F16", "Q8_0")
    }
    text = f"https://huggingface.co/{REPO}/resolve/main/M-Q8_0.gguf" if link else f"{REPO}:Q8_0"
    for sources in (Sources((), text), Sources((text,), None, needs_base=False)):
        (pulled,) = absent(sources)
        assert [file.path for file in pulled.missing] == ["M-Q8_0.gguf"]

    adapters, base = bring(Sources((text,), text))

    assert base is not None
    assert adapters == [base]
    assert base.read_bytes() == b"GGUFQ8_0"
    assert absent(Sources((), text)) == ()


def with_adapters(stage: Stage) -> None:
    """Put an adapter into two folders of the repo."""
    names = [f"base_model.model.x.lora_{half}.weight" for half in "AB"]
    weights = write_safetensors(stage.folder / "weights", dict.fromkeys(names, (1, 1)))
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/model", "revision": "v1"}
    stage.a.files = {
        f"{folder}/{name}": FakeFile(content, is_lfs=False)
        for folder in ("one", "checkpoint-5")
        for name, content in (
            ("adapter_config.json", json.dumps(config).encode()),
            ("adapter_model.safetensors", weights.read_bytes()),
            ("optimizer.pt", b"x"),
        )
    }


@pytest.mark.parametrize(
    ("text", "subfolder"),
    [
        (REPO, "checkpoint-5"),
        (f"{REPO}@main", "checkpoint-5/"),
        (f"https://huggingface.co/{REPO}/tree/main/checkpoint-5", None),
        (f"hf.co/{REPO}", "checkpoint-5"),
    ],
)
def test_adapter_may_lie_in_a_folder_of_a_repo(here: Stage, text: str, subfolder: str | None):
    with_adapters(here)
    folder = folder_of(text, subfolder=subfolder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    assert AdapterSpec(folder, {}, ()).name == "model-checkpoint-5"
    assert not (folder.parent / "one").exists()


def test_revision_of_the_adapter_is_the_one_asked_for(here: Stage):
    folder_of(REPO, revision="v2")
    assert "/api/models/org/model/revision/v2?" in here.a.requests[0].path


def test_folder_that_is_not_in_the_repo_is_named_with_those_that_are(here: Stage):
    with_adapters(here)
    with pytest.raises(InputError, match=r"org/model@main has no folder 'two'") as caught:
        folder_of(REPO, subfolder="two")
    assert caught.value.hint == "it has one, checkpoint-5"


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("https://example.com/org/model", {}, "is not a hub that decant knows"),
        (f"https://huggingface.co/{REPO}/discussions/3", {}, "is a page of the hub"),
        (f"https://huggingface.co/{REPO}/blob/main/config.json", {}, "is a link to one file"),
        (f"https://huggingface.co/{REPO}/tree/dev", {"revision": "v1"}, "names revision 'dev'"),
        (f"hf.co/{REPO}/tree/main/one", {"subfolder": "two"}, "names the folder 'one'"),
        (REPO, {"subfolder": "../x"}, "has '..' in it"),
        (".", {"subfolder": "/etc"}, "is absolute"),
        (".", {"revision": "v1"}, "is not on the hub"),
        ("org/other", {}, "there is no folder `org/other` here, and as a repo: no endpoint says"),
    ],
)
def test_wrong_name_of_a_folder_is_explained(here: Stage, text: str, options, words: str):
    with pytest.raises(DecantError) as caught:
        folder_of(text, **options)
    assert words in caught.value.message


def test_base_has_the_revision_that_the_adapter_was_trained_on(here: Stage, tmp_path: Path):
    adapter = AdapterSpec(tmp_path, {"base_model_name_or_path": REPO, "revision": "v1"}, ())
    find_base(adapter)
    assert "/revision/v1?" in here.a.requests[0].path


def test_dry_run_says_what_would_be_pulled_and_pulls_nothing(here: Stage):
    (pulled,) = absent(Sources((), REPO))
    assert [file.path for file in pulled.missing] == ["model.safetensors", "config.json"]
    assert (here.a.gets(), here.cache.exists()) == ([], False)
    folder_of(REPO)
    assert absent(Sources((), REPO)) == ()


def test_dry_run_looks_into_an_adapter_that_is_here_for_its_base(here: Stage):
    with_adapters(here)
    sources = Sources((REPO,), None, subfolder="one")
    assert [pulled.plan.ref.folder for pulled in absent(sources)] == ["one"]
    folder_of(REPO, subfolder="one")
    here.a.files["model.safetensors"] = FakeFile(b"the base's")
    (pulled,) = absent(sources)  # the base, which here is the same repo
    assert pulled.plan.ref == Ref(REPO, revision="v1")


@pytest.mark.trained
def test_export_names_what_a_dry_run_would_pull(here: Stage, decant: Decant):
    link = f"https://huggingface.co/{REPO}"
    done = decant("export", "--base", link, "--dry-run")
    assert done.stdout.splitlines() == [
        "REPO\tFILE\tSIZE", f"{REPO}\tmodel.safetensors\t2.1 MB", f"{REPO}\tconfig.json\t2 bytes",
    ]  # fmt: skip
    assert "an export would first pull 2 files, 2.1 MB" in done.stderr
    value = json.loads(decant("export", "--base", link, "--dry-run", "--json", "--quiet").stdout)
    assert value["to_pull"][0]["nbytes"] == here.size + 2
    assert here.a.gets() == []
