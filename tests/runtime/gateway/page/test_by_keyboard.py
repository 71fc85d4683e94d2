"""Every action of the page by keys alone; the focus is in sight, and never lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.gateway.conftest import until
from tests.runtime.gateway.page.conftest import (
    CHAT,
    KEY,
    LAST,
    answering,
    keep,
    visiting,
)
from tests.support.page_actions import CODE, CUT, LONG, NOTES, SAID, TITLES, WHOLE, Keys

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

WIDE = {"width": 1280, "height": 800}
NARROW = {"width": 640, "height": 800}
Action = Callable[[Keys], None]
NOTE_WHERE_SCROLLS_END = """() => {
  const log = document.querySelector('.log');
  log.onscrollend = () => { window.left = log.scrollHeight - log.scrollTop - log.clientHeight; };
}"""


def download(keys: Keys) -> str:
    with keys.visit.page.expect_download() as waiting:
        keys.press("Enter")
    return Path(waiting.value.path()).read_text()


def choose_file(keys: Keys, file: Any) -> None:
    with keys.visit.page.expect_file_chooser() as chooser:
        keys.press("Enter")
    chooser.value.set_files(file)


def the_button_sends(keys: Keys) -> None:
    for key in ("Enter", "Space"):
        keys.to("Message")
        keys.type("One.")
        keys.to("Send")
        keys.press(key)
        keys.shown("[data-again]")
        assert keys.name == "Message"


def the_button_stops(keys: Keys) -> None:
    held: list[Any] = []
    keys.visit.page.route(f"**{CHAT}", lambda route: held.append(route))  # noqa: PLW0108 - playwright marks it
    for way in ("stopped", "ended"):
        keys.to("Message")
        keys.type("One.")
        keys.press("Enter")
        keys.to("Stop")
        if way == "stopped":
            keys.press("Enter")
        else:  # by itself, while the button has the focus
            assert until(lambda: held)
            keys.visit.page.wait_for_timeout(100)
            answering(WHOLE)(held[-1])
        keys.shown("[data-again]")
        assert keys.name == "Message"
        held.clear()


def what_is_typed_ahead_stays(keys: Keys) -> None:
    keys.visit.page.route(f"**{CHAT}", lambda route: None)
    keys.to("Message")
    keys.type("One.")
    keys.press("Enter")
    keys.type("Two.")
    keys.press("Enter")
    assert "An answer is being written" in keys.visit.text("[data-file-problems]")
    assert keys.visit["#message"].input_value() == "Two."
    keys.press("Escape")
    keys.shown("[data-again]")
    assert keys.visit["[data-file-problems]"].is_hidden()
    keys.visit.page.route(f"**{CHAT}", answering(WHOLE))
    keys.press("Enter")
    assert until(lambda: keys.visit.texts(".said") == ["One.", "Two."])


def an_answer_is_continued(keys: Keys) -> None:
    keys.visit.page.route(f"**{CHAT}", answering(CUT))
    keys.send()
    keys.to("Continue", back=True)
    keys.press("Enter")
    keys.until(f"document.querySelector('{LAST}').textContent == 'AnAn'")
    assert keys.name == "Message"


def texts_are_copied(keys: Keys) -> None:
    keep(keys.visit, [SAID, CODE])
    for text in (SAID["content"], "x = 1", CODE["content"]):
        keys.to("Copy")
        keys.press("Enter")
        assert until(lambda: keys.name == "Copied")
        found = keys.visit.page.evaluate("navigator.clipboard.readText()")
        assert found == text


def an_edit_is_given_up(keys: Keys) -> None:
    keys.send()
    for way in ("Escape", "Cancel"):
        keys.to("Edit", back=True)
        keys.press("Enter")
        keys.type("Other.")
        if way == "Escape":
            keys.press("Escape")
        else:
            keys.to("Cancel")
            keys.press("Space")
        assert keys.name == "Edit"
    keys.visit["[data-log]"].focus()
    keys.press("e", "Shift+Tab")
    keys.visit.page.keyboard.press("e")  # again: the field has the focus
    assert keys.visit["[aria-label=Message]"].input_value() == "One."


def a_conversation_is_renamed(keys: Keys) -> None:
    keys.send()
    for end, title in (("Escape", "One."), ("Cancel", "One."), ("Rename", "New"), ("Enter", "New")):
        keys.to("Rename", back=True)
        keys.press("Enter")
        keys.type("New")
        if end in ("Escape", "Enter"):
            keys.press(end)
        else:
            keys.to(end)
            keys.press("Enter")
        assert until(lambda: keys.name.startswith(title))  # noqa: B023
        assert keys.visit.texts(TITLES) == [title]
        keys.to("Message")


def a_conversation_is_exported_and_imported(keys: Keys) -> None:
    keys.send()
    keys.to("Markdown", back=True)
    assert download(keys).startswith("# One.")
    assert keys.name == "Markdown"
    keys.to("JSON")
    exported = download(keys).encode()
    keys.to("Import")
    choose_file(keys, {"name": "a.json", "mimeType": "", "buffer": exported})
    keys.until(f"document.querySelectorAll('{TITLES}').length == 2")
    assert until(lambda: keys.name == "Message")
    keys.to("Import", back=True)
    choose_file(keys, {"name": "b.json", "mimeType": "", "buffer": b"{"})
    keys.shown("[data-import-problems]")
    assert keys.name == "Import JSON"


def conversations_are_deleted(keys: Keys) -> None:
    keys.send()
    keys.to("Delete", back=True)  # all of them
    keys.to("Delete", back=True)
    keys.press("Enter")
    assert until(lambda: keys.name == "Undo")
    keys.press("Enter")
    assert until(lambda: keys.visit.texts(".said") == ["One."])
    assert until(lambda: keys.name == "Message")
    keys.visit.page.once("dialog", lambda dialog: dialog.accept())
    keys.to("Delete all", back=True)
    keys.press("Enter")
    assert until(lambda: keys.name == "Search the conversations")
    assert keys.visit["#chat .message"].count() == 0


def the_list_is_searched_and_left(keys: Keys) -> None:
    keys.visit.page.set_viewport_size(NARROW)
    keys.send()
    keys.to("Conversations", back=True)
    keys.press("Enter")
    assert keys.name == "Search the conversations"
    keys.type("nothing like it")
    keys.shown("#chat [data-none]")
    keys.press("Escape")
    keys.shown(".threads .thread")
    keys.press("Escape")
    assert keys.name == "Conversations"
    assert keys.visit["#message"].is_visible()
    keys.press("Enter")
    keys.to("One.")
    keys.press("Enter")
    assert until(lambda: keys.name == "Message")
    keys.visit["[data-log]"].focus()
    keys.press("/", "Tab", "m")
    assert keys.name == "Message"
    keys.visit["[data-log]"].focus()
    keys.press("/", "Tab")
    keys.visit.page.set_viewport_size(WIDE)
    keys.visit.page.set_viewport_size(NARROW)
    keys.until("!document.querySelector('.listing')")


def a_file_is_attached_removed_and_read(keys: Keys) -> None:
    for _ in range(2):
        keys.to("Attach files")
        choose_file(keys, NOTES)
        keys.shown(".chips button")
        assert keys.name == "Message"
        keys.to("Remove notes.txt", back=True)
        keys.press("Enter")
        assert keys.name == "Message"
    keys.to("Attach files")
    choose_file(keys, NOTES)
    keys.shown(".chips button")
    keys.press("Enter")
    keys.shown("[data-again]")
    keys.to("notes.txt", back=True)
    keys.press("Enter", "Tab")
    assert keys.name == "notes"


def settings_are_set_explained_and_unset(keys: Keys) -> None:
    labels = keys.visit["#chat .fields label"].all_text_contents()
    keys.to("Settings")
    keys.press("Enter")
    for label in labels:
        keys.press("Tab")
        assert keys.name == label
        keys.type({"Stop at": "END", "JSON schema of the answer": "{}"}.get(label, "1"))
        hint = keys.visit["#chat .fields .hint"]
        title = keys.visit["*:focus"].get_attribute("title")
        assert title is None or hint.inner_text() == title
    keys.to("Model's own")
    keys.press("Enter")
    assert keys.visit.text("#chat .settings summary") == "Settings: system message"
    keys.to("Settings", back=True)
    keys.press("Space")
    assert keys.visit["#chat .fields"].is_hidden()
    keys.to("System message")
    keys.press("Enter")
    assert keys.visit["#chat textarea:focus"].input_value() == "1"


def a_model_an_adapter_and_a_scale_are_picked(keys: Keys) -> None:
    names = keys.visit["#chat .choice option"].all_text_contents()
    keys.to("Model")
    keys.press("End", "Home", "Tab")
    assert keys.name == "Adapter"
    keys.type("pir")
    keys.to("Scale")
    keys.press("ArrowLeft")
    keys.to("Scale as a number")
    keys.press("ArrowUp", "Tab")
    assert "pirate" in names
    keys.send()
    assert keys.visit.asked(CHAT)[-1]["model"] == f"{names[0]}:pirate"


def columns_are_added_asked_and_removed(keys: Keys) -> None:
    keys.press("ArrowRight")
    keys.to("Add a column")
    keys.press("Enter")
    assert keys.name == "Model"
    keys.to("Remove column 3", back=True)
    keys.press("Enter")
    keys.to("Add a column", back=True)
    keys.to("Compare", back=True)
    keys.to("Prompt", back=True)
    keys.type("One.")
    for way in ("answered", "stopped"):
        if way == "stopped":
            keys.visit.page.route(f"**{CHAT}", lambda route: None)
        keys.to("Compare")
        keys.press("Enter")
        assert keys.name.startswith("Prompt")
        if way == "stopped":
            keys.to("Stop")
            keys.press("Space")
        keys.shown("#compare [data-send]:not([hidden])")
        assert keys.name.startswith("Prompt")


def ids_of_tokens_are_shown(keys: Keys) -> None:
    keys.press("ArrowRight", "ArrowRight")
    keys.to("Show ids")
    keys.press("Space")
    keys.to("Text to tokenize")
    keys.type("Hello there")
    keys.shown("#tokens .added")
    keys.press("Tab", "End")
    assert keys.visit["#tokens.with-ids .token:focus"].count() == 1


def the_keys_are_listed_and_switched_off(keys: Keys) -> None:
    keys.press("?")
    assert keys.name.startswith("Single keys")
    keys.press("Space")
    keys.to("Close")
    keys.press("Enter")
    assert keys.name == "Chat"
    keys.press("n")
    assert keys.name == "Chat"
    keys.press("?", "Escape")
    keys.to("Keyboard help")
    keys.press("Space")
    assert keys.visit["#help-dialog"].is_visible()


def earlier_messages_are_reached(keys: Keys) -> None:
    keep(keys.visit, LONG)
    keys.to("Conversation")
    while keys.name != "Conversation":
        keys.press("Tab")
    for count in (120, 130):
        keys.press("Tab")
        keys.until(f"document.querySelectorAll('.message').length == {count}")
        assert keys.name == "Conversation"
    keys.visit.page.evaluate(NOTE_WHERE_SCROLLS_END)
    for key, place in (("End", "< 2"), ("PageUp", "> 200")):
        keys.press(key)
        keys.until(f"window.left {place}")  # Chromium adds up what is pressed while it scrolls


def reasoning_is_opened(keys: Keys) -> None:
    keys.send()
    keys.to("Reasoning", back=True)
    keys.press("Enter")
    assert keys.visit[".reasoning .markdown"].is_visible()
    keys.press("Space")
    assert keys.visit[".reasoning .markdown"].is_hidden()


def a_report_is_opened_left_and_asked_for_again(keys: Keys) -> None:
    keys.visit.is_refusal_expected = True
    keys.press("End")
    keys.shown("#evaluate .entries button")
    keys.to("Keyboard help")
    keys.press("Tab", "Enter")
    keys.shown("#evaluate iframe")
    assert keys.name == "All evaluations"
    keys.press("Tab")
    assert keys.name == "Open in a tab"
    keys.press("Shift+Tab", "Enter")
    keys.visit.page.context.set_offline(True)
    keys.press("Enter")
    keys.shown("#evaluate .notice")
    assert until(lambda: keys.name == "Try again")
    keys.press("Enter")
    keys.visit.page.context.set_offline(False)
    keys.press("Enter")
    keys.shown("#evaluate .entries button")


ACTIONS: list[Action] = [
    the_button_sends, the_button_stops, what_is_typed_ahead_stays, an_answer_is_continued,
    texts_are_copied, an_edit_is_given_up, a_conversation_is_renamed,
    a_conversation_is_exported_and_imported, conversations_are_deleted,
    the_list_is_searched_and_left, a_file_is_attached_removed_and_read,
    settings_are_set_explained_and_unset, a_model_an_adapter_and_a_scale_are_picked,
    columns_are_added_asked_and_removed, ids_of_tokens_are_shown,
    the_keys_are_listed_and_switched_off, earlier_messages_are_reached, reasoning_is_opened,
    a_report_is_opened_left_and_asked_for_again,
]  # fmt: skip


@pytest.mark.parametrize("act", ACTIONS, ids=[act.__name__ for act in ACTIONS])
def test_by_keys_alone(opened, act):
    visit = opened(viewport=WIDE, permissions=["clipboard-read", "clipboard-write"])
    visit.page.on("filechooser", lambda chooser: None)  # from now on; else a key is too quick
    visit.page.route(f"**{CHAT}", answering(WHOLE))
    act(Keys(visit))


def test_the_key_is_given_by_keys_alone(browser, served):
    with visiting(browser, served.url, viewport=WIDE) as visit:
        keys = Keys(visit)
        visit.is_refusal_expected = True
        visit.page.goto(served.url)
        visit["#key-dialog"].wait_for()
        keys.to("Cancel")
        visit.page.keyboard.press("Enter")
        assert until(lambda: keys.name == "Try again")
        keys.press("Enter")
        visit["#key-dialog"].wait_for()
        keys.type(KEY)
        keys.press("Enter")
        visit["#chat:not([inert])"].wait_for()
        keys.check()
        assert json.loads(visit.page.evaluate("sessionStorage['decant.key']")) == KEY
