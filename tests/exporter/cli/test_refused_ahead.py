"""What an export refuses on a new machine, before gigabytes are pulled or llama.cpp is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.cli.app import run
from exporter.cli.outputs import room_ahead
from tests.exporter.cli.conftest import MIB, NBYTES
from tests.support.hub_files import REPO, FakeFile
from tests.support.hub_stage import Stage
from tests.support.raw import write_adapter, write_base, write_tiny_gguf

pytestmark = pytest.mark.trained

FORMATS = ("gguf", "lora", "safetensors", "ollama")
NOT_BUILT = "llama.cpp has not been built on this machine yet"


@pytest.fixture
def machine(base, tmp_path, monkeypatch) -> Stage:
    """An empty cache without a build, and a hub with a base of 8 MiB of weights."""
    monkeypatch.setenv("DECANT_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return base


@pytest.fixture
def told(machine, capsys):
    """Run an export that must fail; what it says. No weights may be pulled for it."""

    def failing(*arguments: object) -> str:
        assert run(["export", *map(str, arguments)]) != 0
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        assert machine.a.sent < MIB
        return printed.err

    return failing


@pytest.mark.parametrize("to", FORMATS)
def test_an_adapter_that_cannot_be_read(to, told, tmp_path):
    adapter = write_adapter(tmp_path / "lora")
    (adapter / "adapter_model.safetensors").write_bytes(b"x" * 100)

    shown = told(adapter, "--base", REPO, "--to", to)

    assert "adapter_model.safetensors" in shown
    assert NOT_BUILT not in shown


@pytest.mark.parametrize("to", FORMATS)
def test_an_adapter_of_a_kind_that_cannot_be_merged(to, told, tmp_path):
    adapter = write_adapter(tmp_path / "lora", peft_type="PREFIX_TUNING")

    shown = told(adapter, "--base", REPO, "--to", to)

    assert "PREFIX_TUNING" in shown
    assert NOT_BUILT not in shown


def test_an_adapter_of_a_repo_is_pulled_and_refused_before_its_base(told, machine, tmp_path):
    adapter = write_adapter(tmp_path / "lora", peft_type="PREFIX_TUNING")
    machine.a.files = {
        path.name: FakeFile(path.read_bytes(), is_lfs=False) for path in adapter.iterdir()
    }

    shown = told(REPO, "--base", "org/base")

    assert "PREFIX_TUNING" in shown


@pytest.mark.parametrize("to", FORMATS)
def test_an_output_that_exists(to, told, tmp_path):
    adapter = write_adapter(tmp_path / "lora")
    output = tmp_path / ("taken.gguf" if to in ("gguf", "lora") else "taken")
    if output.suffix:
        output.touch()
    else:
        output.mkdir()
        (output / "mine").touch()

    shown = told(adapter, "--base", REPO, "--to", to, "-o", output)

    assert f"`{output}` exists" in shown


def test_an_output_that_exists_under_the_name_that_it_gets(told, tmp_path):
    adapter = write_adapter(tmp_path / "lora")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "lora-Q4_K_M.gguf").touch()

    assert "lora-Q4_K_M.gguf` exists" in told(adapter, "--base", REPO)
    assert "model-Q4_K_M.gguf` exists" not in told("-", "--base", REPO)
    (tmp_path / "store" / "model-Q4_K_M.gguf").touch()
    assert "model-Q4_K_M.gguf` exists" in told("-", "--base", REPO)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-q", "F16", "--tensor-type", "x=q8_0"), "has no meaning for F16"),
        (("--calibrate", "none.txt"), "there is no text `none.txt` to calibrate on"),
        (("--split-max-size", "large"), "--split-max-size"),
        (("-q", "Q8_0", "-q", "Q4_0", "--to", "ollama"), "give -q once"),
        (("--to", "safetensors", "--max-shard-size", "x"), "--max-shard-size"),
        (("--to", "lora", "-o", "x.bin"), "is not a name for a GGUF adapter"),
        (("-o", "x.bin"), "has the name of a file that is no GGUF"),
    ],
)
def test_options_without_a_meaning(options, message, told, tmp_path):
    assert message in told(write_adapter(tmp_path / "lora"), "--base", REPO, *options)


@pytest.mark.parametrize("to", ["gguf", "safetensors", "ollama"])
def test_a_disk_without_room_for_base_and_result(to, told, tmp_path, monkeypatch):
    monkeypatch.setattr(room_ahead, "free_bytes", lambda folder: NBYTES + MIB // 2)

    shown = told(write_adapter(tmp_path / "lora"), "--base", REPO, "--to", to)

    assert "8.39 MB are to be downloaded there" in shown
    assert NOT_BUILT not in shown


@pytest.mark.parametrize("to", FORMATS)
def test_a_base_here_that_cannot_be_read(to, told, tmp_path):
    adapter = write_adapter(tmp_path / "lora")
    base = write_base(tmp_path / "base")
    (base / "model.safetensors").unlink()

    assert NOT_BUILT not in told(adapter, "--base", base, "--to", to)
    assert NOT_BUILT not in told(adapter, "--base", tmp_path / "none", "--to", to)


@pytest.mark.parametrize("to", ["lora", "safetensors", "ollama"])
def test_a_gguf_where_a_checkpoint_is_needed(to, told, tmp_path):
    adapter = write_adapter(tmp_path / "lora")

    for base in (write_tiny_gguf(tmp_path / "m.gguf"), f"{REPO}:Q4_K_M"):
        shown = told(adapter, "--base", base, "--to", to)
        assert f"and --to {to} needs the base's config.json and tokenizer" in shown


def test_a_whole_model_where_an_adapter_is_needed(told, tmp_path):
    for place in (REPO, write_base(tmp_path / "base")):
        assert "is a whole model: --to lora needs an adapter" in told(place, "--to", "lora")


@pytest.mark.parametrize("to", ["gguf", "lora", "ollama"])
def test_without_a_build_nothing_is_pulled_either(to, told, tmp_path):
    shown = told(write_adapter(tmp_path / "lora"), "--base", REPO, "--to", to)

    assert NOT_BUILT in shown
    assert "decant setup" in shown
    assert not Path("decant").exists() or not list(Path("decant").rglob("*.gguf"))
