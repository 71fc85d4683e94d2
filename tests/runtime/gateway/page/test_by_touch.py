"""Every action of the page by taps alone, on a phone: nothing is too small or only hovered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.runtime.gateway.conftest import until
from tests.runtime.gateway.page.conftest import (
    CHAT,
    KEY,
    LAST,
    Visit,
    answering,
    keep,
    visiting,
)
from tests.support.page_actions import CODE, CUT, LONG, NOTES, SAID, TITLES, WHOLE

if TYPE_CHECKING:
    from playwright.sync_api import Locator

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
SMALLEST = 24
"""Pixels. WCAG 2.2, 2.5.8."""
# the field for which a keyboard would cover the page
COVERED = """() => document.activeElement.matches('textarea, input:not([type=checkbox])')
  && document.activeElement.type !== 'range' ? document.activeElement.outerHTML : ''"""
# what a finger would miss
SMALL = f"""() => [...document.querySelectorAll('button, summary, select, input, textarea, a, [role=option]')]
  .filter((e) => e.checkVisibility() && !e.matches('.unseen, .markdown a, .entries button'))
  .map((e) => [(e.closest('.check') ?? e).getBoundingClientRect(), e.outerHTML])
  .filter(([{{ width, height }}]) => Math.min(width, height) < {SMALLEST}).map(([, html]) => html)"""  # noqa: E501 - JavaScript


@dataclass
class Finger:
    """Taps what is named, and looks afterwards whether a keyboard has opened by itself."""

    visit: Visit
    view: str = "#chat"

    def named(self, name: str) -> Locator:
        """A button, tab or folded part with this name, in the view or above it."""
        found = self.visit.page.locator(f"{self.view}, header, dialog[open], #notice")
        roles = ("button", "tab", "link", "checkbox")
        places = [found.get_by_role(role, name=name, exact=True) for role in roles]  # type: ignore[arg-type]
        either = places[0]
        for place in (*places[1:], found.locator("summary").filter(has_text=name)):
            either = either.or_(place)
        return either

    def tap(self, what: str | Locator, *, first: bool = True) -> None:
        place = self.named(what) if isinstance(what, str) else what
        (place.first if first else place.last).tap()
        assert self.visit.page.evaluate(COVERED) == ""
        assert self.visit.page.evaluate(SMALL) == []

    def type(self, label: str, text: str) -> None:
        """Tap a field, and use the keyboard that opens."""
        field = self.visit[self.view].get_by_label(label, exact=True)
        field.tap()
        assert field.evaluate("(e) => e === document.activeElement")
        self.visit.page.keyboard.insert_text(text)

    def shown(self, selector: str) -> None:
        self.visit[selector].first.wait_for()
        assert self.visit.page.evaluate(COVERED) == ""

    def send(self, text: str = "One.") -> None:
        self.type("Message", text)
        self.tap("Send")
        self.shown("[data-again]")


def choose_file(finger: Finger, button: str, *files: Any) -> None:
    with finger.visit.page.expect_file_chooser() as chooser:
        finger.tap(button)
    chooser.value.set_files(list(files))


def download(finger: Finger, button: str) -> bytes:
    with finger.visit.page.expect_download() as waiting:
        finger.tap(button)
    return Path(waiting.value.path()).read_bytes()


def views_are_chosen(finger: Finger) -> None:
    for name in ("Compare", "Tokens", "Evaluate", "Chat"):
        finger.view = "header"
        finger.tap(name)
        assert finger.visit[f"#{name.lower()}"].is_visible()


def several_lines_are_sent(finger: Finger) -> None:
    finger.type("Message", "One.")
    finger.visit.page.keyboard.press("Enter")
    finger.visit.page.keyboard.insert_text("Two.")
    finger.tap("Send")
    finger.shown("[data-again]")
    assert finger.visit.text(".said") == "One.\nTwo."
    finger.named("Edit").tap()
    finger.visit.page.keyboard.press("Enter")
    assert "\n" in finger.visit["#chat .editing textarea:focus"].input_value()[-2:]
    finger.tap(finger.visit["#chat .editing [type=submit]"])
    finger.shown("[data-again]")


def an_answer_is_stopped_continued_and_asked_for_again(finger: Finger) -> None:
    finger.visit.page.route(f"**{CHAT}", lambda route: None)
    finger.type("Message", "One.")
    finger.tap("Send")
    finger.tap("Stop")
    finger.shown("[data-again]")
    finger.visit.page.route(f"**{CHAT}", answering(CUT))
    finger.tap("Regenerate")
    finger.shown("[data-proceed]")
    finger.tap("Continue")
    finger.visit.until(f"document.querySelector('{LAST}').textContent == 'AnAn'")
    finger.shown("[data-again]")
    finger.tap("Previous version")
    assert finger.visit.text(".versions:visible > span") == "1/2"


def texts_are_copied(finger: Finger) -> None:
    keep(finger.visit, [SAID, CODE])
    finger.shown("[data-again]")
    buttons = finger.visit["#chat .message button >> text=/^Copy/"].element_handles()
    for button, text in zip(buttons, ("One.", "x = 1", CODE["content"]), strict=True):
        button.tap()
        assert until(lambda button=button: button.text_content() == "Copied")
        assert finger.visit.page.evaluate("navigator.clipboard.readText()") == text


def what_can_be_attached_is_said(finger: Finger) -> None:
    title = finger.visit["[data-attach]"].get_attribute("title")
    assert title == finger.visit.text("[data-kinds]")
    assert "1.9 MB" in title


def an_edit_is_given_up(finger: Finger) -> None:
    finger.send()
    finger.named("Edit").tap()
    finger.tap("Cancel")
    assert finger.visit.text(".said") == "One."


def conversations_are_renamed_saved_and_brought_back(finger: Finger) -> None:
    finger.send()
    finger.tap("Conversations")
    for end, title in (("Cancel", "One."), ("Rename", "New")):
        finger.named("Rename").tap()
        finger.visit.page.keyboard.insert_text("New")
        finger.tap(end)
        assert until(lambda title=title: finger.visit.texts(TITLES) == [title])
    assert download(finger, "Markdown").startswith(b"# New")
    exported = download(finger, "JSON")
    choose_file(finger, "Import JSON", {"name": "a", "mimeType": "", "buffer": exported})
    finger.shown(".said")
    assert finger.visit["#message"].is_visible()
    finger.tap("Conversations")
    assert until(lambda: finger.visit.texts(TITLES) == ["New", "New"])
    choose_file(finger, "Import JSON", {"name": "b", "mimeType": "", "buffer": b"{"})
    finger.shown("[data-import-problems]")


def conversations_are_found_deleted_and_left(finger: Finger) -> None:
    finger.send()
    finger.tap("New chat")
    finger.send("Two.")
    finger.tap("Conversations")
    finger.type("Search the conversations", "one")
    assert until(lambda: finger.visit.texts(TITLES) == ["One."])
    finger.tap(finger.visit[".threads .thread"])
    finger.shown(".said >> text=One.")
    finger.tap("Conversations")
    finger.tap("Delete")
    finger.tap("Undo")
    finger.shown(".said >> text=One.")
    finger.tap("Conversations")
    finger.visit.page.once("dialog", lambda dialog: dialog.accept())
    finger.tap("Delete all")
    assert until(lambda: finger.visit[".threads .thread"].count() == 0)
    finger.tap("Conversations")
    finger.shown("[data-empty]")


def a_file_is_attached_removed_and_read(finger: Finger) -> None:
    for _ in range(2):
        choose_file(finger, "Attach files", NOTES)
        finger.shown(".chips button")
        finger.tap("Remove notes.txt")
        finger.visit[".chips"].wait_for(state="hidden")
    choose_file(finger, "Attach files", NOTES)
    finger.shown(".chips button")
    finger.tap("Send")
    finger.shown("[data-again]")
    finger.tap("notes.txt")
    assert finger.visit.text(".text-file pre") == "notes"


def settings_are_set_explained_and_unset(finger: Finger) -> None:
    visit = finger.visit
    finger.tap("Settings")
    for label in visit["#chat .fields label"].all_text_contents():
        finger.type(label, {"JSON schema of the answer": "{}"}.get(label, "1"))
        title = visit["*:focus"].get_attribute("title")
        assert title is None or visit.text("#chat .fields .hint") == title
    finger.tap("Model's own for all")
    assert visit.text("#chat .settings summary") == "Settings: system message"
    finger.tap("Settings")
    visit["[data-system]"].tap()
    assert visit["#chat textarea:focus"].input_value() == "1"


def a_model_an_adapter_and_a_scale_are_picked(finger: Finger) -> None:
    visit = finger.visit
    finger.tap(visit["#chat select"], first=False)
    visit["#chat select"].last.select_option(label="pirate")
    finger.tap(visit["#chat [type=range]"])  # its middle
    visit["#chat [type=range]"].tap(position={"x": 4, "y": 12})
    assert visit["#chat .picker [type=number]"].input_value() == "0"
    finger.send()
    assert visit.asked(CHAT)[-1]["model"].endswith(":pirate@0")


def columns_are_added_asked_stopped_and_removed(finger: Finger) -> None:
    visit = finger.visit
    finger.tap("Compare")
    finger.view = "#compare"
    finger.tap("Add a column")
    finger.tap("Remove column 3")
    finger.type("Prompt for all columns", "One.")
    visit.page.keyboard.press("Enter")
    finger.tap(visit["#compare [data-send]"])
    finger.shown("#compare .column:nth-child(2) .foot button:not([hidden])")
    assert visit.asked(CHAT)[-1]["messages"][-1]["content"] == "One."
    visit.page.route(f"**{CHAT}", lambda route: None)
    finger.tap(visit["#compare [data-send]"])
    finger.tap("Stop")
    finger.shown("#compare [data-send]:not([hidden])")
    finger.tap("Settings")
    finger.type("Seed", "1")
    assert "same seed" in visit.text("#compare .fields .hint")


def tokens_are_told(finger: Finger) -> None:
    visit = finger.visit
    finger.tap("Tokens")
    finger.view = "#tokens"
    finger.tap("Show ids")
    finger.type("Text to tokenize", "Hello, I am here.")
    finger.visit["#tokens .added"].first.wait_for()
    finger.tap(visit["#tokens .token"].nth(1))
    assert visit.text("#tokens .current >> nth=0").startswith("Token 2 of")


def reports_are_opened_and_left(finger: Finger) -> None:
    visit = finger.visit
    visit.is_refusal_expected = True
    finger.tap("Evaluate")
    finger.view = "#evaluate"
    finger.tap(visit["#evaluate .entries button"])
    finger.shown("#evaluate iframe")
    with visit.page.context.expect_page() as alone:
        finger.named("Open in a tab").tap()
    alone.value.close()
    finger.tap("All evaluations")
    visit.page.context.set_offline(True)
    finger.tap(visit["#evaluate .entries button"])
    finger.shown("#evaluate .notice")
    visit.page.context.set_offline(False)
    finger.tap("Try again")
    finger.shown("#evaluate .entries button")


def the_keys_are_listed(finger: Finger) -> None:
    finger.tap("Keyboard help")
    finger.tap("Single keys work when nothing is typed")
    assert not finger.visit["[data-single]"].is_checked()
    finger.tap("Close")
    assert finger.visit["#help-dialog"].is_hidden()


def earlier_messages_and_reasoning_are_opened(finger: Finger) -> None:
    visit = finger.visit
    keep(visit, LONG)
    for count in (120, 130):
        visit["[data-log]"].evaluate("(e) => { e.scrollTop = 0; }")  # as one swipes to it
        visit.until(f"document.querySelectorAll('#chat .message').length >= {count}")
    finger.send()
    finger.tap("Reasoning")
    assert visit[".reasoning .markdown"].is_visible()


ACTIONS: list[Callable[[Finger], None]] = [
    views_are_chosen, several_lines_are_sent, an_answer_is_stopped_continued_and_asked_for_again,
    texts_are_copied, what_can_be_attached_is_said, an_edit_is_given_up,
    conversations_are_renamed_saved_and_brought_back,
    conversations_are_found_deleted_and_left, a_file_is_attached_removed_and_read,
    settings_are_set_explained_and_unset, a_model_an_adapter_and_a_scale_are_picked,
    columns_are_added_asked_stopped_and_removed, tokens_are_told, reports_are_opened_and_left,
    the_keys_are_listed, earlier_messages_and_reasoning_are_opened,
]  # fmt: skip


@pytest.mark.parametrize("act", ACTIONS, ids=[act.__name__ for act in ACTIONS])
def test_by_touch_alone(opened, act):
    visit = opened(**PHONE, permissions=["clipboard-read", "clipboard-write"])
    visit.page.on("filechooser", lambda chooser: None)  # from now on; else a tap is too quick
    visit.page.route(f"**{CHAT}", answering(WHOLE))
    act(Finger(visit))


def test_the_key_is_given_by_touch_alone(browser, served):
    with visiting(browser, served.url, **PHONE) as visit:
        finger = Finger(visit, "dialog[open]")
        visit.is_refusal_expected = True
        visit.page.goto(served.url)
        visit["#key-dialog"].wait_for()
        assert visit.page.evaluate(SMALL) == []
        finger.named("Cancel").tap()
        finger.named("Try again").tap()
        visit["#key-dialog"].wait_for()
        finger.type("API key", KEY)
        finger.tap("Use this key")
        visit["#chat:not([inert])"].wait_for()
