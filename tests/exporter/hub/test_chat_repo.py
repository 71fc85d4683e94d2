"""`decant chat` with a repo of GGUFs, as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Decant
from tests.support.hub_files import REPO, FakeFile
from tests.support.hub_stage import Stage

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("offline", [{"HF_HUB_OFFLINE": "1"}, {}])
def test_chat_pulls_the_split_gguf_it_is_asked_for_once(
    stage: Stage, decant: Decant, offline: dict[str, str]
):
    names = [f"M-Q4_K_M-0000{i}-of-00002.gguf" for i in (1, 2)]
    stage.a.files = {name: FakeFile(b"GGUF" + name.encode()) for name in (*names, "M-Q8_0.gguf")}
    env = {
        "HF_ENDPOINT": stage.a.url, "HF_HUB_CACHE": str(stage.cache),
        "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    model = f"{REPO}:Q4_K_M"
    first = decant("chat", model, "-p", "x", **env)
    assert f"{names[0]}` is not a whole GGUF" in first.stderr  # they are stubs
    snapshot = Path(stage.cache / "models--org--model" / "snapshots" / stage.a.commit)
    assert sorted(path.name for path in snapshot.iterdir()) == names
    asked = len(stage.a.requests)
    flag = () if offline else ("--offline",)
    again = decant("chat", model, "-p", "x", *flag, **{**env, **offline})
    assert f"{names[0]}` is not a whole GGUF" in again.stderr
    assert len(stage.a.requests) == asked


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.slow
def test_chat_takes_an_adapters_repo_beside_its_base(stage: Stage, decant: Decant, tmp_path: Path):
    from tests.support.tiny import make_adapter, make_base

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    base = make_base(tmp_path / "base", max_position_embeddings=512, **small)
    adapter = make_adapter(tmp_path / "lora", base)
    names = ("adapter_config.json", "adapter_model.safetensors")
    stage.a.files = {name: FakeFile((adapter / name).read_bytes()) for name in names}
    env = {"HF_ENDPOINT": stage.a.url, "HF_HUB_CACHE": str(stage.cache), "HF_HUB_OFFLINE": "0"}

    done = decant("chat", REPO, "-p", "x", "-n", "1", "--json", **env)

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["adapter"], Path(said["model"]).name) == ("model", "base-Q4_K_M.gguf")
