from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from exporter.core.errors import AdapterError, OutputError, SpaceError
from exporter.core.events import Note
from exporter.core.resumable_file import Unfinished, journalled

FACTS = {"base": "a", "options": "b"}


def item(path: Path, **facts: str) -> Unfinished:
    return Unfinished(path, 8, FACTS | facts)


def write(journal, data: bytes, at: int) -> None:
    os.pwrite(journal.file.fileno(), data, at)
    journal.wrote(len(data), data.decode())


def stop(path: Path, error: BaseException, **facts: str) -> None:
    """Write half of a file and stop as an export is stopped."""
    with (
        pytest.raises((KeyboardInterrupt, SpaceError, AdapterError)),
        journalled([item(path, **facts)]) as opened,
    ):
        write(opened[path], b"half", 0)
        raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def go_on(path: Path, events: list, **facts: str) -> set[str]:
    """Begin again, and stop at once. Returns the tensors that were there."""
    with (
        pytest.raises(KeyboardInterrupt),
        journalled([item(path, **facts)], report=events.append) as opened,
    ):
        there = set(opened[path].done)
        raise KeyboardInterrupt
    return there


def notes(events: list) -> str:
    return " ".join(event.message for event in events if isinstance(event, Note))


def test_a_stopped_file_is_gone_on_with_and_nothing_but_it_remains(tmp_path):
    model = tmp_path / "m"
    stop(model, KeyboardInterrupt())
    with journalled([item(model)]) as opened:
        assert opened[model].done == {"half"}
        write(opened[model], b"rest", 4)

    assert model.read_bytes() == b"halfrest"
    assert names(tmp_path) == ["m"]


@pytest.mark.parametrize("changed", ["base", "options"])
def test_another_plan_begins_afresh_and_says_what_differs(tmp_path, changed):
    events: list = []
    stop(tmp_path / "m", KeyboardInterrupt(), **{changed: "c"})

    assert go_on(tmp_path / "m", events) == set()
    assert f"differs in {changed}: starting over" in notes(events)


def test_what_is_begun_afresh_has_no_bytes_of_before(tmp_path):
    stop(tmp_path / "m", KeyboardInterrupt(), base="c")
    with journalled([item(tmp_path / "m")]):
        pass

    assert (tmp_path / "m").read_bytes() == bytes(8)


def test_a_torn_last_line_does_not_count(tmp_path):
    stop(tmp_path / "m", KeyboardInterrupt())
    with (tmp_path / ".m.journal").open("ab") as file:
        file.write(b'"other"')

    assert go_on(tmp_path / "m", []) == {"half"}
    assert go_on(tmp_path / "m", []) == {"half"}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]\n", b"\xff\n", b"1\n2\n"])
def test_a_damaged_journal_begins_afresh(tmp_path, content):
    stop(tmp_path / "m", KeyboardInterrupt())
    (tmp_path / ".m.journal").write_bytes(content)

    assert go_on(tmp_path / "m", []) == set()


def test_a_partial_file_of_another_size_begins_afresh(tmp_path):
    events: list = []
    stop(tmp_path / "m", KeyboardInterrupt())
    os.truncate(tmp_path / ".m.partial", 7)

    assert go_on(tmp_path / "m", events) == set()
    assert "damaged: starting over" in notes(events)


def test_a_second_writer_is_told_and_takes_nothing_from_the_first(tmp_path):
    other, model = tmp_path / "a", tmp_path / "m"
    stop(other, KeyboardInterrupt())
    with journalled([item(model)]) as opened:
        write(opened[model], b"12345678", 0)
        with pytest.raises(OutputError, match="another process is writing"):
            with journalled([item(other), item(model)]):
                pass

    assert model.read_bytes() == b"12345678"
    assert go_on(other, []) == {"half"}


def test_on_a_full_disk_what_is_finished_is_kept(tmp_path):
    stop(tmp_path / "m", OSError(errno.ENOSPC, "No space left on device"))

    assert go_on(tmp_path / "m", []) == {"half"}


def test_what_cannot_succeed_is_not_kept(tmp_path):
    stop(tmp_path / "m", AdapterError("it holds NaN", hint=""))

    assert names(tmp_path) == []


def test_an_existing_file_is_refused_and_what_was_begun_beside_it_stays(tmp_path):
    stop(tmp_path / "m", KeyboardInterrupt())
    (tmp_path / "m").write_bytes(b"old")

    with pytest.raises(OutputError, match="exists"), journalled([item(tmp_path / "m")]):
        pytest.fail("the block must not run")
    with journalled([item(tmp_path / "m")], force=True) as opened:
        assert opened[tmp_path / "m"].done == {"half"}

    assert (tmp_path / "m").read_bytes() == b"half" + bytes(4)
    with pytest.raises(OutputError, match="exists"), journalled([item(tmp_path / "m")]):
        pass
    assert names(tmp_path) == ["m"]


def published_alone(tmp_path: Path, monkeypatch) -> tuple[Unfinished, Unfinished]:
    """Two files of one export that was stopped when the first had its name."""
    from exporter.core import resumable_file as module

    first, second = item(tmp_path / "a"), item(tmp_path / "b")
    publish = module.publish

    def only_first(partial, path, *, force):
        if path != first.path:
            raise KeyboardInterrupt
        publish(partial, path, force=force)

    monkeypatch.setattr(module, "publish", only_first)
    with pytest.raises(KeyboardInterrupt), journalled([first, second]) as opened:
        for each in opened.values():
            write(each, b"12345678", 0)
    monkeypatch.undo()
    assert first.path.exists()
    assert not second.path.exists()
    return first, second


def test_a_file_that_was_published_before_the_kill_is_left_as_it_is(tmp_path, monkeypatch):
    items = published_alone(tmp_path, monkeypatch)
    before = items[0].path.stat()
    events: list = []

    with journalled(items, report=events.append) as opened:
        assert list(opened) == [items[1].path]

    assert items[0].path.stat() == before
    assert items[1].path.read_bytes() == b"12345678"
    assert "`a` is there already" in notes(events)
    assert names(tmp_path) == ["a", "b"]


def test_a_published_file_that_was_changed_since_is_somebody_elses(tmp_path, monkeypatch):
    items = published_alone(tmp_path, monkeypatch)
    items[0].path.write_bytes(b"87654321")
    os.utime(items[0].path, ns=(1, 1))

    with pytest.raises(OutputError, match="exists"), journalled(items):
        pass
    assert items[0].path.read_bytes() == b"87654321"
