"""A full disk, a taken file: an export says so before it pulls or merges anything."""

from __future__ import annotations

import fcntl

import pytest

from exporter.cli.app import run
from exporter.cli.outputs import room_ahead
from exporter.cli.outputs.room_ahead import bits_of
from exporter.core.atomic_file import partial_path
from tests.exporter.cli.conftest import MIB, NBYTES
from tests.support.hub_files import REPO
from tests.support.hub_stage import Stage
from tests.support.raw import write_base

pytestmark = pytest.mark.trained


def sent_weights(hub: Stage) -> bool:
    return hub.a.sent > MIB


def test_where_base_and_result_do_not_fit_nothing_is_pulled(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(room_ahead, "free_bytes", lambda folder: NBYTES + MIB // 2)

    assert run(["export", "-", "--base", REPO, "-q", "Q4_K_M", "-o", str(tmp_path / "out")]) != 0

    told = capsys.readouterr().err
    assert "8.39 MB are to be downloaded there, and Q4_K_M needs about 2.1 MB more" in told
    assert "hint: free some space" in told
    assert not sent_weights(base)


@pytest.mark.llamacpp
def test_where_it_depends_on_the_base_it_is_a_warning(
    base, toolchain, tmp_path, monkeypatch, capsys
):
    (base.folder / "decant").mkdir(exist_ok=True)
    (base.folder / "decant" / "llama.cpp").symlink_to(toolchain.folder.parent)
    monkeypatch.setattr(room_ahead, "free_bytes", lambda folder: NBYTES + 3 * MIB // 2)

    run(["export", "-", "--base", REPO, "-q", "Q4_K_M", "-o", str(tmp_path / "out")])

    assert "the export may have to stop" in capsys.readouterr().err
    assert sent_weights(base)


def test_a_result_that_another_export_writes_is_told_before_anything_is_read(tmp_path, capsys):
    output = tmp_path / "m.gguf"
    with partial_path(output).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert (
            run(["export", "-", "--base", str(write_base(tmp_path / "base")), "-o", str(output)])
            != 0
        )

    told = capsys.readouterr().err
    assert "another process is writing" in told
    assert "reading the adapter and the base" not in told


@pytest.mark.parametrize(
    ("quant", "bits"), [("Q4_K_M", 4), ("BF16", 16), ("F32", 32), ("IQ2_XXS", 2), ("MXFP4_MOE", 4)]
)
def test_the_bits_of_a_quantization_are_in_its_name(quant, bits):
    assert bits_of(quant) == bits
