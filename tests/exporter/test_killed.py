"""Exports to GGUF, killed at random moments and gone on with."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from exporter.core.atomic_file import sha256_file
from exporter.core.errors import OutputError, SpaceError
from exporter.export import export
from exporter.formats import gguf_file
from exporter.formats.export_request import ExportRequest
from tests.support.architectures import make_architecture
from tests.support.tiny import make_adapter, make_base, make_tokenizer
from tests.support.warm import run_warm

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
]

KILLS = 20


def kill(base: Path, adapter: Path, folder: Path, kills: int) -> list[str]:
    """Kill and go on that many times. Returns what the runs after a kill said."""
    folder.mkdir()
    done = run_warm(["tests.support.killer", adapter, base, folder, kills], timeout_s=600)
    assert done.returncode == 0, done.stderr
    whole = {path.name: sha256_file(path) for path in (folder / "whole").iterdir()}
    assert sorted(whole) == ["F16.gguf", "Q8_0.gguf"]
    said = []
    for number in range(kills):
        made, told = folder / f"killed-{number}", folder / f"killed-{number}.said"
        if told.exists():  # else the kill came when all was done
            said.append(" ".join(json.loads(told.read_text())))
            assert len(list(made.iterdir())) == len(whole), number
        assert {name: sha256_file(made / name) for name in whole} == whole, number
    return said


def test_kills_at_random_moments_cost_no_byte(toolchain, tmp_path):
    base = make_base(tmp_path / "base", num_hidden_layers=8)

    said = kill(base, make_adapter(tmp_path / "lora", base), tmp_path / "out", KILLS)

    assert sum("resuming `" in text for text in said) >= KILLS // 4


def test_stacked_experts_are_not_taken_for_whole_after_the_first(toolchain, tmp_path):
    base = make_architecture("mixtral", tmp_path / "base")
    make_tokenizer(base)
    adapter = make_adapter(tmp_path / "lora", base, target_modules=["q_proj"])

    said = kill(base, adapter, tmp_path / "out", 6)

    assert any("resuming `" in text for text in said)


@pytest.fixture
def models(tmp_path):
    base = make_base(tmp_path / "base")
    return base, make_adapter(tmp_path / "lora", base)


def interrupted(base: Path, adapter: Path, output: Path, toolchain, share: float = 0.5) -> None:
    def report(event: object) -> None:
        if getattr(event, "task", "") == "quantizing" and event.done > share * event.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(base, adapter, output, toolchain, report=report)


def run(base: Path, adapter: Path, output: Path, toolchain, **more) -> None:
    report = more.pop("report", lambda event: None)
    request = ExportRequest(((adapter, 1.0),), base, ("Q8_0",), (output,), **more)
    export(request, toolchain, report=report)


def change_base(base: Path, adapter: Path) -> None:
    other = make_base(base.parent / "other", seed=9)
    shutil.copy(other / "model.safetensors", base / "model.safetensors")


def change_adapter(base: Path, adapter: Path) -> None:
    shutil.rmtree(adapter)
    make_adapter(adapter, base, seed=9)


@pytest.mark.parametrize(
    ("change", "named"),
    [(change_base, "base and options"), (change_adapter, "adapters and options")],
)
def test_with_other_weights_it_begins_afresh_and_says_why(
    toolchain, models, tmp_path, change, named
):
    output, whole = tmp_path / "m.gguf", tmp_path / "whole.gguf"
    interrupted(*models, output, toolchain)
    change(*models)
    notes = []

    run(*models, output, toolchain, report=lambda event: notes.append(str(event)))
    run(*models, whole, toolchain)

    assert any(f"differs in {named}: starting over" in note for note in notes)
    assert output.read_bytes() == whole.read_bytes()


def test_an_interrupted_export_is_not_replaced_by_another_beside_it(toolchain, models, tmp_path):
    """Two exports to one name: the second is told, the first goes on."""
    output = tmp_path / "m.gguf"
    told = []

    def report(event: object) -> None:
        if getattr(event, "task", "") == "quantizing" and not told:
            with pytest.raises(OutputError, match="another process is writing") as caught:
                run(*models, output, toolchain)
            told.append(caught.value)

    run(*models, output, toolchain, report=report)

    assert told
    run(*models, tmp_path / "other.gguf", toolchain)
    assert output.read_bytes() == (tmp_path / "other.gguf").read_bytes()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, which a few megabytes fill."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(disk)],
        check=False, capture_output=True,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("mounting a small disk takes root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_midway_keeps_what_is_there(
    toolchain, models, small_disk, tmp_path, monkeypatch
):
    output, ballast = small_disk / "m.gguf", small_disk / "ballast"
    monkeypatch.setattr(gguf_file, "AHEAD", 1)  # the rest waits until the disk is full

    def fill(event: object) -> None:
        if getattr(event, "task", "") == "quantizing" and event.done > event.total / 2:
            with ballast.open("ab") as file:
                try:
                    file.write(bytes(80 << 20))
                except OSError:
                    return

    with pytest.raises(SpaceError, match=r"the disk is full: \d+ tensors are kept") as caught:
        run(*models, output, toolchain, report=fill)
    assert "run the same command again" in caught.value.hint
    assert not output.exists()

    ballast.unlink()
    run(*models, output, toolchain)
    run(*models, tmp_path / "whole.gguf", toolchain)
    assert output.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
