"""A conversation is the sum of its events, and a file of them is enough to go on."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.core.errors import InputError, OutputError, SpaceError
from runtime.chat.session import (
    EVENTS,
    Answered,
    Chosen,
    Cleared,
    Conversation,
    Image,
    ModelSet,
    Named,
    Opened,
    QuestionAdded,
    SettingsSet,
    SystemSet,
    Trimmed,
    Undone,
    all_after,
    from_json,
    to_json,
)
from runtime.chat.session_files import check_name, find_session, list_sessions, new_session, resume

OPENED = Opened("id", "model", 1.0)
TEXTS = st.text(max_size=20)
ANY_EVENT = st.one_of(
    st.builds(QuestionAdded, TEXTS, st.tuples(st.builds(Image, TEXTS, TEXTS))),
    st.builds(Answered, TEXTS, TEXTS, st.booleans(), TEXTS, st.dictionaries(TEXTS, st.integers())),
    st.builds(Undone),
    st.builds(Cleared),
    st.builds(Trimmed, st.integers(0, 5)),
    st.builds(SystemSet, TEXTS),
    st.builds(SettingsSet, st.dictionaries(TEXTS, st.integers())),
    st.builds(Chosen, TEXTS, st.floats(allow_nan=False)),
    st.builds(ModelSet, TEXTS),
    st.builds(Named, TEXTS),
)


def said(*events) -> Conversation:
    return all_after([OPENED, *events])


def contents(messages) -> list[str]:
    return [message["content"] for message in messages]


@given(ANY_EVENT)
def test_an_event_is_the_same_after_its_line_of_json(event):
    assert from_json(json.loads(json.dumps(to_json(event)))) == event


@given(st.lists(ANY_EVENT, max_size=12))
def test_no_order_of_events_breaks_a_conversation(events):
    conversation = said(*events)

    assert 0 <= conversation.first <= len(conversation.turns)
    assert isinstance(conversation.messages(), list)


def test_every_event_has_a_name_of_its_own():
    assert len(set(EVENTS.values())) == len(EVENTS)


@pytest.mark.parametrize(
    "record", [{}, {"event": "asked"}, {"event": "danced"}, {"event": "undone", "why": 1}]
)
def test_a_record_of_no_event_is_refused(record):
    with pytest.raises(ValueError, match="not an event"):
        from_json(record)


def test_a_question_is_asked_with_what_was_said_before():
    conversation = said(
        SystemSet("be brief"), QuestionAdded("a"), Answered("b"), QuestionAdded("c")
    )

    assert contents(conversation.asking()) == ["be brief", "a", "b", "c"]
    assert contents(conversation.messages()) == ["be brief", "a", "b"]


def test_a_question_that_is_asked_again_goes_without_its_answer():
    conversation = said(QuestionAdded("a"), Answered("b"), QuestionAdded("c"), Answered("d"))

    assert contents(conversation.asking()) == ["a", "b", "c"]


def test_questions_nobody_answered_are_not_sent_with_the_next():
    assert contents(said(QuestionAdded("a"), QuestionAdded("b")).asking()) == ["b"]


def test_undoing_takes_one_turn_back_and_clearing_all():
    turns = (QuestionAdded("a"), Answered("b"), QuestionAdded("c"), Answered("d"))

    assert contents(said(*turns, Undone()).messages()) == ["a", "b"]
    assert said(*turns, Cleared()).turns == ()


def test_trimmed_turns_are_kept_but_not_sent():
    conversation = said(
        QuestionAdded("a"), Answered("b"), QuestionAdded("c"), Answered("d"), Trimmed(1)
    )

    assert contents(conversation.messages()) == ["c", "d"]
    assert len(conversation.turns) == 2


def test_an_image_goes_with_its_question_in_openais_form():
    conversation = said(QuestionAdded("what is it?", (Image("a.png", "data:image/png;base64,AA"),)))

    assert conversation.asking()[0]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
        {"type": "text", "text": "what is it?"},
    ]


def test_another_model_begins_without_the_adapter_of_the_last():
    conversation = said(Chosen("pirate", 0.5), ModelSet("other"))

    assert (conversation.model, conversation.selection.adapter) == ("other", "")


# -- the files


def test_what_was_recorded_is_there_again(tmp_path):
    with new_session(tmp_path, "m") as session:
        session.record(QuestionAdded("ü → 日本\n\ud800"), Answered("yes"))
    (path,) = tmp_path.glob("*.jsonl")
    with resume(path) as again:
        assert contents(again.conversation.messages()) == ["ü → 日本\n?", "yes"]
        assert again.conversation.id == path.stem
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_an_event_that_was_cut_off_anywhere_is_left_out(tmp_path, cut):
    with new_session(tmp_path, "m") as session:
        session.record(QuestionAdded("a"), Answered("b"))
    (path,) = tmp_path.glob("*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with resume(path) as again:
        assert [turn.question for turn in again.conversation.turns] == ["a"]
        assert again.conversation.turns[0].answer is None
        again.record(Answered("c"))
    with resume(path) as last:
        assert last.conversation.turns[0].answer == "c"


def test_a_file_that_is_damaged_in_its_middle_is_told(tmp_path):
    with new_session(tmp_path, "m") as session:
        session.record(QuestionAdded("a"), Answered("b"))
    (path,) = tmp_path.glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"garbage\n" + lines[2])

    with pytest.raises(InputError, match="damaged in line 2"):
        resume(path)


def test_a_conversation_without_a_question_leaves_no_file(tmp_path):
    with new_session(tmp_path, "m"):
        assert len(list(tmp_path.glob("*.jsonl"))) == 1

    assert list(tmp_path.iterdir()) == []


def test_a_session_is_open_in_one_process_only(tmp_path):
    with new_session(tmp_path, "m") as session:
        session.record(QuestionAdded("a"))
        (path,) = tmp_path.glob("*.jsonl")

        with pytest.raises(OutputError, match="open in another window"):
            resume(path)


def test_what_was_not_kept_can_be_kept_later(tmp_path):
    with new_session(None, "m") as session:
        session.record(QuestionAdded("a"), Answered("b"))
        assert list(tmp_path.iterdir()) == []
        session.keep(tmp_path)
        session.record(QuestionAdded("c"))
    (one,) = list_sessions(tmp_path)

    assert (one.turns, one.title) == (2, "a")


def test_what_cannot_be_kept_is_not_lost(tmp_path, monkeypatch):
    def full(file, events):
        raise SpaceError("the disk is full")

    with new_session(None, "m") as session:
        session.record(QuestionAdded("a"))
        with monkeypatch.context() as patch:
            patch.setattr("runtime.chat.session_files.append", full)
            with pytest.raises(SpaceError):
                session.keep(tmp_path)
        assert list(tmp_path.iterdir()) == []
        session.keep(tmp_path)
    (one,) = list_sessions(tmp_path)

    assert one.title == "a"


def test_sessions_are_found_by_id_beginning_and_name(tmp_path):
    with new_session(tmp_path, "m") as session:
        session.record(QuestionAdded("a"), Named("paris"))
    (path,) = tmp_path.glob("*.jsonl")

    assert find_session(tmp_path, None) == path
    assert find_session(tmp_path, "paris") == path
    assert find_session(tmp_path, path.stem[:10]) == path
    with pytest.raises(InputError, match="no session 'rome'"):
        find_session(tmp_path, "rome")


@pytest.mark.parametrize("name", ["", "a/b", "..//", "a b", "x" * 101])
def test_names_that_are_none_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="not a name"):
        check_name(name, tmp_path, "own")


def test_two_sessions_have_not_one_name(tmp_path):
    with new_session(tmp_path, "m") as session:
        session.record(QuestionAdded("a"), Named("paris"))

    with pytest.raises(InputError, match="already"):
        check_name("paris", tmp_path, "own")


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "asked", "question": 5}',
        '{"event": "settings", "settings": 5}',
        '{"event": "trimmed", "first": "x"}',
        '{"event": "asked", "question": "x", "images": [{"name": 1, "url": "x"}]}',
        '{"event": "later_kind", "x": 1}',
        "[" * 100_000,
        "5",
    ],
)
def test_a_whole_line_that_is_not_understood_is_told_and_left_alone(tmp_path, line):
    with new_session(tmp_path, "m") as session:
        session.record(QuestionAdded("a"))
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("a") as file:
        file.write(line + "\n")
    before = path.read_bytes()

    with pytest.raises(InputError, match="damaged in line 3"):
        resume(path)
    assert path.read_bytes() == before
    assert list_sessions(tmp_path) == []


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()

    assert list_sessions(tmp_path) == []


def test_a_conversation_that_was_cleared_is_kept(tmp_path):
    with new_session(tmp_path, "m") as session:
        session.record(QuestionAdded("a"), Answered("b"), Cleared())
    (path,) = tmp_path.glob("*.jsonl")
    with resume(path):
        pass

    assert path.exists()


FULL = """
import resource, sys
from pathlib import Path
from runtime.chat.session import QuestionAdded
from runtime.chat.session_files import new_session, resume
from exporter.core.errors import DecantError
folder = Path(sys.argv[1])
session = new_session(folder, "m")
session.record(QuestionAdded("a"))
(path,) = folder.glob("*.jsonl")
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, resource.RLIM_INFINITY))
try:
    session.record(QuestionAdded("b" * 100))
except (DecantError, OSError) as error:
    print(type(error).__name__)
assert [turn.question for turn in session.conversation.turns] == ["a"], "nor does it remember"
session.file.close()
"""


def test_an_event_that_does_not_fit_on_the_disk_is_not_half_there(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True
    )
    (path,) = tmp_path.glob("*.jsonl")

    assert done.stdout.strip() in ("OSError", SpaceError.__name__)
    assert path.read_bytes().endswith(b"\n")
    with resume(path) as session:
        assert [turn.question for turn in session.conversation.turns] == ["a"]
    assert list(tmp_path.iterdir()) == [path]
