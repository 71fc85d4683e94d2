"""The page by keys, by touch, in Chinese, and as axe-core judges it."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.gateway.conftest import until
from tests.runtime.gateway.page.conftest import (
    CHAT,
    DONE,
    ENDED,
    KEY,
    Visit,
    answering,
    ask,
    base_of,
    delta,
    visiting,
)

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

AXE = "axe-core@4.12.1"
RUN = """async () => {
  const { violations } = await axe.run(document, { resultTypes: ['violations'], iframes: false });
  return violations.map(({ id, impact, nodes }) => ({ id, impact, where: nodes.map((n) => n.target.join(' ')) }));
}"""  # noqa: E501 - JavaScript
SERIOUS = {"serious", "critical"}
RICH = "# A\n\n```py\nif a: # b\n  f('c', 1)\n```\n\n- [x] d\n\n$$\ne^2\n$$\n\n|f|\n|-|\n|`g` $h$|"
WIDE = {"width": 1280, "height": 800}
VIEWS = ("chat", "compare", "tokens", "evaluate")
# texts in view with four Latin letters in a row, outside of what people and models wrote
LATIN = """() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!element.checkVisibility() || element.closest('.said, .markdown, option, .thread, .message > h2, .model, .entries, .token-list')) continue;
    if (/[a-z]{4}/i.test(node.data)) found.push(node.data.trim());
  }
  for (const name of ['aria-label', 'title', 'placeholder']) {
    for (const element of document.querySelectorAll(`[${name}]`)) {
      if (!element.closest('.thread') && element.checkVisibility() && /[a-z]{4}/i.test(element.getAttribute(name))) found.push(element.getAttribute(name));
    }
  }
  return found;
}"""  # noqa: E501 - JavaScript


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    """The checker's script, from npm."""
    folder = tmp_path_factory.mktemp("axe")
    command = ["npm", "pack", "--silent", "--ignore-scripts", AXE]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    (packed,) = folder.glob("*.tgz")
    with tarfile.open(packed) as archive:
        archive.extract("package/axe.min.js", folder, filter="data")
    return Path(folder / "package" / "axe.min.js").read_text()


def mocked(visit: Visit, text: str) -> Visit:
    answer = answering(delta(content=text, reasoning_content="Hm.") + ENDED + DONE)
    visit.page.route(f"**{CHAT}", answer)
    return visit


def filled(visit: Visit) -> Visit:
    """Something of everything in the view Chat."""
    mocked(visit, RICH)
    ask(visit, "One.")
    visit["[data-again]"].click()
    visit["[data-again]"].wait_for()
    ask(visit, "Two.")
    visit["[data-edit]"].last.click()
    visit[".reasoning summary"].last.click()
    file: Any = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"notes"}
    visit["[data-files]"].set_input_files(file)
    visit[".chips li"].wait_for()
    return visit


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(opened, axe, width, scheme):
    phone = {"has_touch": True, "is_mobile": True} if width < 1000 else {}
    visit = opened(viewport={"width": width, "height": 800}, color_scheme=scheme, **phone)
    filled(visit)
    visit.page.evaluate(axe)

    def judged(place: str) -> None:
        bad = [one for one in visit.page.evaluate(RUN) if one["impact"] in SERIOUS]
        assert bad == [], place

    visit[".editing textarea"].wait_for()
    judged("chat with an edit")
    visit["#chat .settings summary"].click()
    visit["#chat"].get_by_label("System message").fill("Be brief.")
    visit["#chat"].get_by_label("JSON schema").fill("{")
    visit["#chat"].get_by_label("Top p").focus()
    judged("settings")
    visit["#chat .settings summary"].click()
    if width < 1000:
        visit["[data-history-toggle]"].click()
    judged("conversations")
    visit["#chat .threads"].get_by_role("button", name="Rename").click()
    judged("a title that is changed")
    visit[".renaming"].get_by_role("button", name="Cancel").click()
    visit["#search"].fill("nothing like it")
    visit["#chat [data-none]"].wait_for()
    judged("a search without result")
    visit["#search"].fill("")
    visit["#chat .threads"].get_by_role("button", name="Delete").click()
    visit["[data-undo] button"].wait_for()
    judged("undo")
    visit["[data-undo] button"].click()
    for view in VIEWS[1:]:
        visit[f"#tab-{view}"].click()
        if view == "tokens":
            visit["#text"].fill("Hello there")
            visit["#tokens .added"].first.wait_for()
        judged(view)
    visit["#evaluate .entries button"].click()
    visit["#evaluate iframe"].wait_for()
    judged("a report")
    visit.page.keyboard.press("?")
    for dialog in ("help", "key"):
        visit.page.evaluate(f"document.getElementById('{dialog}-dialog').showModal()") if (
            dialog == "key"
        ) else visit["#help-dialog"].wait_for()
        judged(dialog)
        visit.page.evaluate(f"document.getElementById('{dialog}-dialog').close()")


def test_single_keys_work_from_anywhere_but_a_field(opened):
    visit = mocked(opened(viewport=WIDE), "An answer.")
    focused = "document.activeElement.id || document.activeElement.className"
    ask(visit, "One.")
    visit["#message"].press("?")
    assert visit["#message"].input_value() == "?"
    visit["#message"].fill("")
    visit["#tab-tokens"].click()
    for key, place in (("/", "search"), ("m", "message")):
        visit.page.evaluate("document.activeElement.blur()")
        visit.page.keyboard.press(key)
        assert visit.page.evaluate(focused) == place
        assert visit["#message"].input_value() == ""
        assert visit["#search"].input_value() == ""
    visit["[data-log]"].focus()
    visit.page.keyboard.press("e")
    assert visit[".editing textarea"].input_value() == "One."
    visit.page.keyboard.press("Escape")
    visit.page.keyboard.press("n")
    assert visit["#chat .message"].count() == 0
    visit["[data-log]"].focus()
    visit.page.keyboard.press("?")
    assert "Search the conversations" in visit.text("#help-dialog")
    visit["[data-single]"].uncheck()
    visit.page.keyboard.press("Escape")
    visit["[data-log]"].focus()
    visit.page.keyboard.press("/")
    assert "log" in visit.page.evaluate(focused)
    visit["[data-help]"].click()
    visit["#help-dialog"].wait_for()


def test_conversations_are_worked_by_keys_alone(opened):
    visit = mocked(opened(viewport=WIDE), "An answer.")
    press = visit.page.keyboard.press
    ask(visit, "One.")
    visit["#chat [data-clear]"].click()
    ask(visit, "Two.")
    visit["#search"].focus()
    stops = []
    while "Delete all" not in stops:
        press("Tab")
        stops.append(visit.page.evaluate("document.activeElement.textContent.trim()"))
        assert visit.page.evaluate("document.activeElement.matches(':focus-visible')")
        assert len(stops) < 12
    expected = ["Two", "Rename", "Markdown", "JSON", "Delete", "One", "Import", "Delete all"]
    assert [stop[: len(name)] for stop, name in zip(stops, expected, strict=True)] == expected
    press("Shift+Tab")
    press("Shift+Tab")
    press("Enter")
    assert until(lambda: visit.texts(".said") == ["One."])
    assert visit.page.evaluate("document.activeElement.id") == "message"
    visit["[data-edit]"].focus()
    press("Enter")
    visit.page.keyboard.type("More ")
    press("Enter")
    visit["[data-again]"].wait_for()
    visit["[data-turn='-1']"].first.focus()
    press("Enter")
    assert visit.texts(".said") == ["One."]


def test_a_phone_has_all_of_it_under_a_finger(browser, served):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with visiting(browser, served.url, **phone) as visit:
        mocked(visit.open(f"#key={KEY}"), "An answer.")
        visit["#message"].fill("One.")
        visit["#chat [data-send]"].tap()
        visit["[data-again]"].wait_for()
        visit["[data-edit]"].tap()
        visit[".editing textarea"].fill("Two.")
        visit[".editing [type=submit]"].tap()
        visit["[data-again]"].wait_for()
        visit["[aria-label='Previous version']"].first.tap()
        assert visit.texts(".said") == ["One."]
        visit["[data-history-toggle]"].tap()
        assert visit["#message"].is_hidden()
        visit["#search"].fill("one")
        visit[".threads .thread"].tap()
        visit["#message"].wait_for()
        small = """() => [...document.querySelectorAll('button, summary, select, input')]
          .filter((e) => e.checkVisibility() && !e.matches('.unseen'))
          .map((e) => [e.getBoundingClientRect(), e.outerHTML])
          .filter(([{ width, height }]) => Math.min(width, height) < 24).map(([, html]) => html)"""
        assert visit.page.evaluate(small) == []  # WCAG 2.2, 2.5.8


def test_the_words_are_chinese_where_the_reader_wants_that(browser, served):
    with visiting(browser, served.url, locale="zh-CN", viewport=WIDE) as visit:
        visit.open(f"#key={KEY}")
        filled(visit)
        visit["#chat .settings summary"].click()
        found = set()
        for view in VIEWS:
            visit[f"#tab-{view}"].click()
            if view == "tokens":
                visit["#text"].fill("Hello there")
                visit["#tokens .added"].first.wait_for()
            found |= set(visit.page.evaluate(LATIN))
        assert visit.page.evaluate("document.documentElement.lang") == "zh-CN"
        assert visit.text("#tab-chat") == "对话"
        expected = {"decant", base_of(served), "JSON", "Markdown", "notes.txt · 5 B"}
        known = ("decant eval", "Hello", "Enter ", '{"type"', "回答的 JSON Schema")
        left = {text for text in found - expected if not text.startswith(known)}
        assert {text for text in left if not any("\u4e00" <= c <= "\u9fff" for c in text)} == set()
