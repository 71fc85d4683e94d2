"""A file that changes on its way is not published."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exporter.core.errors import InputError
from exporter.core.events import Event, Progress
from tests.exporter.hub.upload.conftest import Pushing
from tests.support.upload_stage import REPO, write_gguf

pytestmark = pytest.mark.lasting  # a hub and sockets: seconds in all


@pytest.mark.parametrize("chunk", [None, 1000])
def test_a_file_that_changes_while_it_is_sent_is_not_published(pushing: Pushing, chunk: int | None):
    path = write_gguf(pushing.folder / "changing.gguf", size=300_000)
    stat = path.stat()
    pushing.hub.faults.chunk = chunk and 100_000

    changed: list[Event] = []

    def change(event: Event) -> None:
        is_hashed = isinstance(event, Progress) and event.task == "hashing changing.gguf"
        if is_hashed and not changed:
            changed.append(event)
            with path.open("r+b") as file:  # the last bytes, and no trace in the file's times
                file.seek(-1, os.SEEK_END)
                last = file.read(1)
                file.seek(-1, os.SEEK_END)
                file.write(bytes([last[0] ^ 1]))
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    with pytest.raises(InputError, match=r"changing.gguf` changed while it was read"):
        pushing.push(path, report=change)

    assert "changing.gguf" not in pushing.hub.contents(REPO)
    assert not pushing.hub.stored


def test_a_change_is_noticed_at_the_next_read(pushing: Pushing):
    path = write_gguf(pushing.folder / "changing.gguf", size=1_000_000)
    sent: list[Event] = []

    def change(event: Event) -> None:
        if isinstance(event, Progress) and event.task == "sending changing.gguf":
            sent.append(event)
            path.touch()

    with pytest.raises(InputError, match="changed while it was read"):
        pushing.push(path, report=change)

    assert len(sent) == 1


def test_a_file_that_grows_is_not_published(pushing: Pushing):
    def grow(event: Event) -> None:
        if isinstance(event, Progress) and event.task.startswith("hashing"):
            with pushing.paths[0].open("ab") as file:
                file.write(b"more")

    with pytest.raises(InputError, match="changed while it was read"):
        pushing.push(report=grow)


def test_a_file_that_is_gone_is_an_error(pushing: Pushing, tmp_path: Path):
    pushing.paths[1].unlink()

    with pytest.raises(InputError, match=r"m-Q8_0\.gguf"):
        pushing.push()
