"""What everybody must be able to use: keys only, a screen reader, a narrow window, any light."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import pytest

from tests.runtime.gateway.page.conftest import (
    KEY,
    LAST,
    Visit,
    ask,
    base_of,
    choose,
    endless_of,
    keep,
    visiting,
)

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

VIEWS = ("chat", "compare", "tokens", "evaluate")
ANSWER = """# A head

Text with `code`, **bold**, [a link](https://a.example/very/long/address/without/any/break/at/all)
and averyveryverylongwordwithoutanyplacetobreakitwhichisstillnotallowedtomakethepagewider.

> a quote

- an item
  - in it

```python
a_line_of_code(that, goes, on, and_on, beyond, the_width, of_a, phone, by_far, and_then, some)
```

| Name | What it is | And more of it | Yet more |
|------|------------|----------------|---------:|
| one  | averyverylongword | averyverylongword | 1 |
"""
FACTS = {"finish": "length", "tokens": 1234, "speed": 12.3, "error": None, "isStopped": False}
SAID = {"role": "assistant", "model": "a-model:adapter@0.5", "reasoning": "Hm.", **FACTS}
FAILED = {**SAID, "content": "", "tokens": None, "error": "the server has failed"}
CONVERSATION = [
    {"role": "user", "content": "a" * 120},
    {**SAID, "content": ANSWER},
    {"role": "user", "content": "Why?"},
    FAILED,
]
TOO_WIDE = """() => [document.documentElement, ...document.querySelectorAll('body *')]
  .filter((e) => e.checkVisibility() && !e.closest('pre, .table, .unseen'))
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5
    || (e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX === 'auto'))
  .map((e) => `${e.tagName}.${e.className} ${e.scrollWidth}`)"""
# texts whose colour is too near to what lies behind them: WCAG 2.2, 1.4.3
TOO_FAINT = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const over = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (element, pseudo) => {
    const behind = ['white'];
    for (let e = element; e; e = e.parentElement) behind.splice(1, 0, getComputedStyle(e).backgroundColor);
    const own = getComputedStyle(element, pseudo);
    const [a, b] = [light(over(behind)), light(over([...behind, own.color]))].sort((x, y) => x - y);
    return (b + 0.05) / (a + 0.05);
  };
  const faint = [];
  const check = (element, text, pseudo) => {
    const found = contrast(element, pseudo);
    if (found < 4.5) faint.push(`${found.toFixed(2)} ${element.tagName}.${element.className} ${text}`);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (node.data.trim() && element.checkVisibility() && !element.disabled) check(element, node.data.slice(0, 40));
  }
  for (const field of document.querySelectorAll('input, textarea, select')) {
    if (!field.checkVisibility()) continue;
    check(field, field.value);
    check(field, field.placeholder, '::placeholder');
  }
  return faint;
}"""  # noqa: E501 - JavaScript
CONTROLS = {
    "button", "textbox", "combobox", "slider", "spinbutton", "checkbox", "tab", "tabpanel",
    "option", "listbox", "link", "region", "tablist", "group", "dialog", "heading",
}  # fmt: skip
UNNAMED_GROUPS = {"group"}  # <details>, which its summary names for every reader


@pytest.fixture(scope="module")
def filled(browser, served) -> Iterator[Visit]:
    """A page with something in every view."""
    with visiting(browser, served.url) as visit:
        visit.open(f"#key={quote(KEY)}")
        keep(visit, CONVERSATION)
        choose(visit, "#chat", base_of(served), "pirate")
        for view in VIEWS[:2]:
            visit[f"#tab-{view}"].click()
            visit[f"#{view} .settings summary"].click()
        visit["#prompt"].fill("What does a cow say?")
        visit["#compare [data-send]"].click()
        visit["#compare mark"].first.wait_for()
        visit["#tab-tokens"].click()
        visit["#text"].fill("Hello there,\n\tnaïve " + "word" * 40)
        visit["#tokens .added"].first.wait_for()
        visit["[data-ids]"].check()
        visit["#tab-evaluate"].click()
        visit["#evaluate .entries button"].wait_for()
        yield visit


@pytest.fixture
def visit_with_lists(opened) -> Visit:
    """A page with an answer that has lists in lists."""
    visit = opened()
    answer = {**SAID, "content": "- a\n  - b\n    - c\n"}
    keep(visit, [{"role": "user", "content": "Why?"}, answer])
    visit["[data-again]"].wait_for()
    return visit


def resized(visit: Visit, width: int, height: int) -> None:
    visit.page.set_viewport_size({"width": width, "height": height})


@pytest.fixture
def dialog(filled) -> Iterator[None]:
    """The question for a key, closed again after the test."""
    yield
    filled.page.evaluate("document.getElementById('key-dialog').close()")


SHOW_DIALOG = "document.getElementById('key-dialog').showModal()"


@pytest.mark.usefixtures("dialog")
def test_nothing_is_wider_than_a_window_of_320_pixels(filled):
    resized(filled, 320, 640)
    for view in VIEWS:
        filled[f"#tab-{view}"].click()
        assert filled.page.evaluate(TOO_WIDE) == [], view
    filled.page.evaluate(SHOW_DIALOG)
    assert filled.page.evaluate(TOO_WIDE) == []


def test_the_header_is_never_wider_than_the_window(filled):
    filled["#tab-evaluate"].click()  # the widest name in bold
    for width in range(320, 700, 10):
        resized(filled, width, 800)
        assert filled.page.evaluate("document.documentElement.scrollWidth") == width


def test_the_message_stays_in_sight_also_in_a_low_window(filled):
    for height in (800, 330):
        resized(filled, 640, height)
        filled["#tab-chat"].click()
        filled["#message"].scroll_into_view_if_needed()
        filled["#message"].click()
        assert filled["[data-log]"].bounding_box()["height"] > 100


def test_lists_have_the_marks_of_their_own_depth(visit_with_lists):
    marks = (
        "[...document.querySelectorAll('.answer ul')].map((e) => getComputedStyle(e).listStyleType)"
    )
    assert visit_with_lists.page.evaluate(marks) == ["disc", "circle", "square"]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_tools_of_a_conversation_are_in_one_row(visit_with_lists, width):
    resized(visit_with_lists, width, 800)
    if not visit_with_lists["#chat .history"].is_visible():
        visit_with_lists["[data-history-toggle]"].click()
    visit_with_lists[".threads .tools button"].first.wait_for()
    tops = "[...document.querySelectorAll('.threads .tools button')].map((e) => e.offsetTop)"
    found = visit_with_lists.page.evaluate(tops)
    assert len(found) > 2
    assert len(set(found)) == 1


@pytest.mark.usefixtures("dialog")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_any_light(filled, scheme):
    resized(filled, 1100, 800)
    filled.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    ground = filled.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in ground[4:-1].split(","))

    assert (brightness > 600) if scheme == "light" else (brightness < 100)
    for view in VIEWS:
        filled[f"#tab-{view}"].click()
        assert filled.page.evaluate(TOO_FAINT) == [], view
    filled.page.evaluate(SHOW_DIALOG)
    assert filled.page.evaluate(TOO_FAINT) == []


def accessible(visit: Visit) -> list[dict[str, Any]]:
    """What the browser tells a screen reader."""
    session = visit.page.context.new_cdp_session(visit.page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    return [node for node in nodes if not node["ignored"]]


def said(node: dict[str, Any], what: str) -> str:
    return str(node.get(what, {}).get("value", ""))


def test_everything_has_a_name_a_place_and_an_order(filled):
    visit = filled
    for view in VIEWS:
        visit[f"#tab-{view}"].click()
        nodes = accessible(visit)
        roles = [said(node, "role") for node in nodes]
        unnamed = [
            said(node, "role")
            for node in nodes
            if said(node, "role") in CONTROLS - UNNAMED_GROUPS and not said(node, "name").strip()
        ]
        assert unnamed == []
        assert roles.count("main") == roles.count("banner") == 1
        levels = [
            next(p["value"]["value"] for p in node["properties"] if p["name"] == "level")
            for node in nodes
            if said(node, "role") == "heading"
        ]
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        ids = visit.page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids))
        unlabelled = """[...document.querySelectorAll('input, select, textarea')]
            .filter(e => !e.labels.length && !e.ariaLabel).map(e => e.outerHTML)"""
        assert visit.page.evaluate(unlabelled) == []  # what a placeholder names is not named
        referring = "[aria-controls], [aria-labelledby], [aria-describedby], label[for]"
        dangling = f"""[...document.querySelectorAll('{referring}')].flatMap(e =>
            ['aria-controls', 'aria-labelledby', 'aria-describedby', 'for']
            .map(n => e.getAttribute(n)).filter(id => id && !document.getElementById(id)))"""
        assert visit.page.evaluate(dangling) == []


def test_all_of_it_works_by_keys_alone(opened, served):
    visit = opened()
    press = visit.page.keyboard.press
    focused = "document.activeElement.{}"

    def at(what: str = "id") -> str:
        return str(visit.page.evaluate(focused.format(what)))

    visit.page.reload()
    visit["#chat:not([inert])"].wait_for()
    press("Tab")
    assert at() == "tab-chat"
    for key, view in (("ArrowRight", "compare"), ("End", "evaluate"), ("ArrowRight", "chat")):
        press(key)
        assert at() == f"tab-{view}"
        assert at("getAttribute('aria-selected')") == "true"
        assert visit["[role=tabpanel]:visible"].get_attribute("id") == view
    stops = []
    while at() != "message":
        press("Tab")
        stops.append(at("textContent").strip() or at("labels?.[0].textContent"))
        assert at("matches(':focus-visible')") == "True"
        assert (
            visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        )
        assert len(stops) < 12
    assert "New chat" in stops
    visit.page.keyboard.type("What does a cow say?")
    press("Shift+Enter")
    visit.page.keyboard.type("Tell me.")
    press("Enter")
    visit["[data-again]"].wait_for()
    assert visit.text(".said") == "What does a cow say?\nTell me."
    press("Shift+Tab")
    assert at("textContent") == "Regenerate"
    press("Enter")
    assert at() == "message"
    visit["[data-again]"].wait_for()


def test_a_screen_reader_is_told_the_answer_once_and_not_each_word(opened, served):
    visit = opened()
    visit.page.evaluate(
        """() => { window.told = [];
        const announcer = document.getElementById('announcer');
        new MutationObserver(() => { if (announcer.textContent) told.push(announcer.textContent) })
          .observe(announcer, { childList: true }); }"""
    )
    answer = ask(visit, "What does a cow say?")
    visit.until(f"told.at(-1) === {json.dumps(answer)}")

    assert visit.page.evaluate("told") in (["Answering", answer], [answer])
    live = "[aria-live], [role=log], [role=status], [role=alert], output"
    assert visit.page.evaluate(f"document.querySelector('{LAST}').closest('{live}')") is None
    assert visit["#announcer"].get_attribute("role") == "status"


def test_nothing_moves_for_those_who_ask_for_that(opened, served):
    visit = opened()
    choose(visit, "#chat", endless_of(served))
    visit.page.route("**/v1/chat/completions", lambda route: None)
    visit["#message"].fill("Go on.")
    visit["#message"].press("Enter")
    visit[".waiting"].wait_for()
    for motion, moves in (("reduce", False), ("no-preference", True)):
        visit.page.emulate_media(reduced_motion=motion)
        assert bool(visit.page.evaluate("document.getAnimations().length")) is moves


def test_who_waits_long_is_told_for_what_and_how_long(opened, served):
    visit = opened()
    visit.page.route("**/v1/chat/completions", lambda route: None)
    status = {"id": base_of(served), "status": {"value": "loading", "progress": 0.426}}
    visit.page.route("**/v1/models/*", lambda route: route.fulfill(json=status))
    visit["#message"].fill("Hello")
    visit["#message"].press("Enter")
    visit.until("document.querySelector('.waiting').textContent.endsWith(' s')")

    told = visit.text(".waiting")
    assert re.fullmatch(rf"Waiting for {base_of(served)}… loading 43 %, \d s", told), told
    visit["#message"].press("Escape")
    visit["[data-again]"].wait_for()
    assert "stopped by you" in visit.text(".foot .facts")
