from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.core.atomic_file import (
    atomic_write,
    explained,
    free_bytes,
    is_same_file,
    read_json_object,
    write_json,
)
from exporter.core.errors import CheckpointError, InputError, OutputError, SpaceError

# Writes half of a file and waits, as a slow export would.
HALF = """
import sys, time
from pathlib import Path
from exporter.core.atomic_file import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def half_writer(tmp_path):
    """A process in the middle of writing `model`."""
    argv = [sys.executable, "-c", HALF, str(tmp_path / "model")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"writing\n"
        yield process
        process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_name_appears_when_the_content_is_complete(tmp_path):
    with atomic_write(tmp_path / "model") as file:
        file.write(b"whole")
        assert not (tmp_path / "model").exists()

    assert (tmp_path / "model").read_bytes() == b"whole"
    assert names(tmp_path) == ["model"]


def test_an_error_in_the_middle_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "model") as file:
        file.write(b"half")
        _ = 1 / 0

    assert names(tmp_path) == []


def test_an_error_in_the_middle_keeps_the_old_file(tmp_path):
    (tmp_path / "model").write_bytes(b"old")

    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "model", force=True):
        _ = 1 / 0

    assert (tmp_path / "model").read_bytes() == b"old"
    assert names(tmp_path) == ["model"]


def test_ctrl_c_leaves_nothing(tmp_path, half_writer):
    half_writer.send_signal(signal.SIGINT)
    half_writer.wait(10)

    assert names(tmp_path) == []


def test_kill_9_leaves_no_file_under_the_name_and_the_next_writer_cleans_up(tmp_path, half_writer):
    half_writer.kill()
    half_writer.wait(10)
    assert names(tmp_path) == [".model.partial"]

    with atomic_write(tmp_path / "model") as file:
        file.write(b"new")

    assert (tmp_path / "model").read_bytes() == b"new"
    assert names(tmp_path) == ["model"]


def test_a_second_writer_is_told_and_disturbs_nothing(tmp_path, half_writer):
    with pytest.raises(OutputError, match="another process is writing"):
        with atomic_write(tmp_path / "model"):
            pass

    assert (tmp_path / ".model.partial").read_bytes() == b"half"


def test_a_lock_on_a_file_that_has_meanwhile_been_published_does_not_count(tmp_path):
    """Its writer renamed it between our open and our lock: writing on would damage the model."""
    partial, model = tmp_path / ".model.partial", tmp_path / "model"
    partial.write_bytes(b"whole")
    with partial.open("r+b") as file:
        assert is_same_file(file, partial)
        partial.rename(model)
        assert not is_same_file(file, partial)
        partial.write_bytes(b"")
        assert not is_same_file(file, partial)


def test_a_writer_killed_between_the_halves_of_a_rename_cost_nobody_a_model(tmp_path):
    """Then both names are of the finished file: emptying one would empty the other."""
    (tmp_path / "model").write_bytes(b"whole")
    os.link(tmp_path / "model", tmp_path / ".model.partial")

    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "model", force=True) as file:
        file.write(b"new")
        assert (tmp_path / "model").read_bytes() == b"whole"
        _ = 1 / 0

    assert (tmp_path / "model").read_bytes() == b"whole"
    assert names(tmp_path) == ["model"]


def test_an_existing_file_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "model").write_bytes(b"old")

    with pytest.raises(OutputError, match="exists") as caught, atomic_write(tmp_path / "model"):
        pytest.fail("the block must not run")

    assert "--force" in caught.value.hint
    assert (tmp_path / "model").read_bytes() == b"old"


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(OutputError, match="exists"), atomic_write(tmp_path / "model") as file:
        file.write(b"ours")
        (tmp_path / "model").write_bytes(b"theirs")

    assert (tmp_path / "model").read_bytes() == b"theirs"
    assert names(tmp_path) == ["model"]


def test_a_folder_is_not_taken_for_a_file(tmp_path):
    with pytest.raises(OutputError, match="is a folder"), atomic_write(tmp_path, force=True):
        pass


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, SpaceError), (errno.EDQUOT, SpaceError), (errno.EROFS, OutputError)],
)
def test_the_systems_errors_become_ours(tmp_path, number, kind):
    with pytest.raises(kind, match="model"), explained(tmp_path / "model"):
        raise OSError(number, os.strerror(number))


def test_a_full_disk_is_named_and_leaves_nothing():
    """/dev/full fails every write as a full disk does."""
    with pytest.raises(SpaceError, match="disk is full"), explained(Path("/dev/full")):
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")


def test_a_place_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(OutputError, match="cannot make the folder"):
        with atomic_write(tmp_path / "file" / "below" / "model"):
            pass


def test_free_space_is_known_for_a_folder_that_does_not_exist_yet(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.01)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not JSON"),
        (b"[1]", "holds a list"),
        (b'"\xff"', "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_anything_but_a_json_object_is_refused_by_name(tmp_path, content, said):
    (tmp_path / "config.json").write_bytes(content)

    with pytest.raises(CheckpointError, match=said) as caught:
        read_json_object(tmp_path / "config.json", error=CheckpointError, hint="look")

    assert str(tmp_path / "config.json") in caught.value.message


def test_a_missing_json_file_is_named(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        read_json_object(tmp_path / "config.json", error=InputError, hint="look")


def test_json_round_trip(tmp_path):
    write_json(tmp_path / "a.json", {"key": "wert ü"})

    assert read_json_object(tmp_path / "a.json", error=InputError, hint="") == {"key": "wert ü"}
