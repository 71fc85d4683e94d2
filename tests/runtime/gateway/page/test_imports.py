"""Conversations brought back from the files that the page has exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.gateway.conftest import until
from tests.runtime.gateway.page.conftest import (
    CHAT,
    DONE,
    ENDED,
    Visit,
    answering,
    ask,
    delta,
    keep,
    kept,
)

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

WIDE = {"width": 1280, "height": 800}
TITLES = ".threads .thread > span:first-child"
HOSTILE = "<img src=x onerror=window.ran=1>"
QUESTION = {"role": "user", "id": 1, "parent": 0, "content": "One?"}
ANSWER = {"role": "assistant", "id": 2, "parent": 1, "content": "Two.", "model": "m"}
FILE = {"format": "decant-conversation", "version": 1, "title": "A", "messages": [QUESTION, ANSWER]}
PICTURE = {"kind": "image", "name": "p", "size": 1, "data": "data:image/png;base64,AAAA"}
REFUSED = {
    "not JSON": ("{", "is not a conversation"),
    "another JSON": ("[1]", "is not a conversation"),
    "nothing": ("", "is not a conversation"),
    "null": ("null", "is not a conversation"),
    "a newer version": ({**FILE, "version": 2}, "has version 2"),
    "no messages": ({**FILE, "messages": []}, "has 0 messages"),
    "too many": ({**FILE, "messages": [QUESTION] * 20_001}, "has 20,001 messages"),
    "one id twice": ({**FILE, "messages": [QUESTION, QUESTION]}, "message 2"),
    "a ring": ({**FILE, "messages": [{**QUESTION, "parent": 1}]}, "message 1"),
    "a later parent": ({**FILE, "messages": [ANSWER, QUESTION]}, "message 1"),
    "an id that is none": ({**FILE, "messages": [{**QUESTION, "id": 1.5}]}, "message 1"),
    "an id without a next one": ({**FILE, "messages": [{**QUESTION, "id": 1e300}]}, "message 1"),
    "another role": ({**FILE, "messages": [{**QUESTION, "role": "system"}]}, "message 1"),
    "no text": ({**FILE, "messages": [{**QUESTION, "content": None}]}, "message 1"),
    "a number as text": ({**FILE, "messages": [QUESTION, {**ANSWER, "error": 5}]}, "message 2"),
    "a system message that is none": ({**FILE, "system": 5}, "its system message is not a text"),
    "a list": ({**FILE, "messages": [[]]}, "message 1"),
    "a script as a picture": (
        {**FILE, "messages": [{**QUESTION, "files": [{**PICTURE, "data": "javascript:ran=1"}]}]},
        "message 1",
    ),
    "a picture from elsewhere": (
        {**FILE, "messages": [{**QUESTION, "files": [{**PICTURE, "data": "http://127.0.0.1:9/"}]}]},
        "message 1",
    ),
}


def bring(visit: Visit, *contents: object) -> None:
    """Choose files to import."""
    files: Any = [
        {
            "name": f"file-{number}.json",
            "mimeType": "application/json",
            "buffer": (content if isinstance(content, str) else json.dumps(content)).encode(),
        }
        for number, content in enumerate(contents)
    ]
    visit["[data-import-files]"].set_input_files(files)


@pytest.fixture
def visit(opened) -> Visit:
    """A window with room for the list; answers that need no model."""
    visit: Visit = opened(viewport=WIDE)
    visit.page.route(f"**{CHAT}", answering(delta(content="An answer.") + ENDED + DONE))
    return visit


def test_what_was_exported_comes_back_beside_what_is_there(visit):
    ask(visit, "One.")
    visit["[data-again]"].click()
    visit["[data-again]"].wait_for()
    with visit.page.expect_download() as download:
        visit[".threads"].get_by_role("button", name="JSON", exact=True).click()
    exported = Path(download.value.path()).read_text()
    before = kept(visit)
    bring(visit, exported)
    assert until(lambda: visit.texts(TITLES) == ["One.", "One."])
    threads, messages = kept(visit)

    assert [thread for thread in threads if thread in before[0]] == before[0]
    assert [message for message in messages if message in before[1]] == before[1]
    (new,) = [thread for thread in threads if thread not in before[0]]
    came = [message for message in messages if message["thread"] == new["id"]]
    assert [{**message, "thread": ""} for message in came] == [
        {**message, "thread": ""} for message in before[1]
    ]
    assert new["chosen"] == before[0][0]["chosen"]
    assert visit.texts(".said") == ["One."]
    assert visit[".versions"].last.inner_text().split() == ["‹", "2/2", "›"]
    ask(visit, "More.")
    assert visit.texts(".said") == ["One.", "More."]


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_conversation_changes_nothing(visit, name):
    content, why = REFUSED[name]
    ask(visit, "One.")
    before = kept(visit)
    bring(visit, content)
    visit["[data-import-problems]:not([hidden])"].wait_for()

    assert why in visit.text("[data-import-problems]")
    assert visit.text("[data-import-problems]").startswith("file-0.json ")
    assert kept(visit) == before
    assert visit.page.evaluate("window.ran") is None


def test_of_several_files_each_stands_for_itself(visit):
    hostile = {**FILE, "title": HOSTILE, "messages": [{**QUESTION, "content": HOSTILE}]}
    other = {"unknown": {"deep": 1}, "path": [2, 77, "x"]}
    bring(visit, {**FILE, **other}, "{", hostile)
    assert until(lambda: sorted(visit.texts(TITLES)) == sorted([HOSTILE, "A"]))

    assert "file-1.json" in visit.text("[data-import-problems]")
    assert visit.texts(".said") == [HOSTILE]
    assert visit.page.evaluate("window.ran") is None
    assert {message.get("unknown") for message in kept(visit)[1]} == {None}
    bring(visit, FILE)
    assert until(lambda: len(visit.texts(TITLES)) == 3)
    assert visit["[data-import-problems]"].is_hidden()


def test_no_conversation_is_deleted_to_make_room(visit):
    visit.page.evaluate(
        """async () => {
          const { Thread } = await import('/page/thread.js');
          const { save } = await import('/page/store.js');
          for (let n = 0; n < 500; n += 1) {
            const thread = new Thread();
            thread.add({ role: 'user', content: `${n}` });
            await save(thread.record, [...thread.messages.values()]);
          }
        }"""
    )
    bring(visit, FILE)
    visit["[data-import-problems]:not([hidden])"].wait_for()

    assert "no room" in visit.text("[data-import-problems]")
    assert len(kept(visit)[0]) == 500


def test_the_button_opens_the_browsers_choice_of_files(visit):
    keep(visit, [{"role": "user", "content": "One."}])
    with visit.page.expect_file_chooser() as chooser:
        visit["[data-import]"].click()

    assert chooser.value.is_multiple()
