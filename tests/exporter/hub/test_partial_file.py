from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.core.errors import OutputError, SpaceError
from exporter.hub.partial_file import HEADER, DiskPart, disk_error, kept_bytes, part_paths
from exporter.hub.pull_plan import PlannedFile
from exporter.hub.timeouts import Limits
from exporter.hub.transfer import Transfer, open_part
from tests.support.hub_files import FakeFile, random_bytes

DATA = random_bytes(1000)
FILE = PlannedFile("x.bin", len(DATA), FakeFile(DATA).etag)
LIMITS = replace(Limits(), cell=64, small=0)


def opened(folder: Path, file: PlannedFile = FILE) -> DiskPart:
    part = DiskPart.open(file, folder, LIMITS)
    assert part is not None
    return part


def write(part: DiskPart, start: int, end: int) -> None:
    part.write(start, [DATA[start:end]], end - start)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, len(DATA)), max_size=6), st.integers(1, 4))
def test_part_resumes_at_any_offset(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], connections: int
):
    folder = tmp_path_factory.mktemp("part")
    limits = replace(LIMITS, connections=connections)
    for limit in (*stops, len(DATA)):  # each turn is a process that is killed after `limit` bytes
        part, left = opened(folder), limit
        transfer = Transfer(FILE, {}, limits)
        transfer.adopt(part)
        while left and (claim := transfer.claim(width=limits.connections, most=limits.claim_max)):
            end = min(claim.end, claim.start + left)
            write(part, claim.start, end)
            left -= end - claim.start
            transfer.release(claim)
        part.close()
    part = opened(folder)
    assert part.nbytes == len(DATA)
    assert part.is_right()
    part.publish(folder / "done")
    assert (folder / "done").read_bytes() == DATA
    assert list(folder.iterdir()) == [folder / "done"]


def test_claims_do_not_overlap_and_cover_the_file(tmp_path: Path):
    transfer = Transfer(FILE, {}, LIMITS)
    transfer.adopt(opened(tmp_path))
    claims = []
    while claim := transfer.claim(width=LIMITS.connections, most=LIMITS.claim_max):
        claims.append(claim)
    assert [claim.start for claim in claims] == [0, *[claim.end for claim in claims[:-1]]]
    assert claims[-1].end == len(DATA)
    assert claims[0].end - claims[0].start > claims[-1].end - claims[-1].start


def test_wrong_byte_is_found(tmp_path: Path):
    part = opened(tmp_path)
    part.write(0, [DATA[:500], b"!", DATA[501:]], len(DATA))
    assert not part.is_right()
    part.clear()
    write(part, 0, len(DATA))
    assert part.is_right()


def test_second_process_does_not_get_the_part(tmp_path: Path):
    part = opened(tmp_path)
    assert DiskPart.open(FILE, tmp_path, LIMITS) is None
    part.close()
    opened(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:20],
        lambda content: b"other" + content[5:],
        lambda content: content[:-4],
        lambda content: content[: HEADER.size] + b"\xff" * (len(content) - HEADER.size),
        lambda content: b"",
    ],
)
def test_damaged_journal_starts_over(tmp_path: Path, damage):
    part = opened(tmp_path)
    write(part, 0, 500)
    part.close()
    _, journal = part_paths(tmp_path, FILE)
    journal.write_bytes(damage(journal.read_bytes()))
    assert opened(tmp_path).nbytes == 0


def test_journal_that_claims_more_than_there_is_starts_over(tmp_path: Path):
    part = opened(tmp_path)
    write(part, 0, 500)
    part.close()
    os.truncate(part.path, 100)
    assert opened(tmp_path).nbytes == 0


def test_plan_knows_what_a_part_holds(tmp_path: Path):
    assert kept_bytes(FILE, tmp_path) == 0
    write(opened(tmp_path), 0, 321)
    assert kept_bytes(FILE, tmp_path) == 321


def test_part_is_not_written_through_a_link(tmp_path: Path):
    part, _ = part_paths(tmp_path, FILE)
    part.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="not a plain file"):
        DiskPart.open(FILE, tmp_path, LIMITS)
    assert not (tmp_path / "elsewhere").exists()


def test_full_disk_is_a_space_error(tmp_path: Path):
    error = disk_error(OSError(28, "No space left on device"), tmp_path / "x", 1000)
    assert isinstance(error, SpaceError)
    assert error.hint == "1 kB of the file are kept; free some space, and run it again"


@pytest.mark.parametrize("size", [0, 1, 64, 65])
def test_small_and_empty_files_are_whole(tmp_path: Path, size: int):
    data = DATA[:size]
    for is_lfs in (True, False):
        file = PlannedFile("x", size, FakeFile(data, is_lfs=is_lfs).etag)
        part = open_part(file, tmp_path, Limits())
        assert part is not None
        if size:
            part.write(0, [data], size)
        assert part.is_right()
        part.publish(tmp_path / "done")
        assert (tmp_path / "done").read_bytes() == data
