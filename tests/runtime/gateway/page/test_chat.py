"""The view Chat, used in a real browser against a real gateway."""

from __future__ import annotations

import json
import re

import pytest

from tests.runtime.conftest import PROMPTS
from tests.runtime.gateway.conftest import until
from tests.runtime.gateway.page.conftest import (
    CHAT,
    LAST,
    ask,
    base_of,
    choose,
    configure,
    endless_of,
)

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

COW = PROMPTS[2]


def test_an_answer_comes_with_its_length_and_speed(opened, served):
    visit = opened()
    configure(visit, "chat", Temperature="0")

    answer = ask(visit, COW)

    assert answer == served.says(base_of(served), COW)
    assert re.fullmatch(r"\d+ tokens · [\d.]+ tokens/s", visit.text(".foot .facts"))
    assert visit.texts(".message h2") == ["You", base_of(served)]
    assert served.metric("decant_disconnects_total", model=base_of(served)) == 0


def test_an_answer_grows_while_it_is_written_until_it_is_stopped(opened, served):
    visit = opened()
    choose(visit, "#chat", endless_of(served))
    visit["#message"].fill("Go on.")
    visit["#message"].press("Enter")
    length = f"document.querySelector('{LAST}')?.textContent.length"
    for _ in range(4):
        visit.until(f"{length} > {visit.page.evaluate(length) or 0}")
    assert until(lambda: served.metric("decant_slots_used") == 1)
    visit["#chat [data-stop]"].click()
    visit["[data-again]"].wait_for()

    assert "stopped by you" in visit.text(".foot .facts")
    stopped = visit.page.evaluate(length)
    assert until(lambda: served.metric("decant_slots_used") == 0)
    assert visit.page.evaluate(length) == stopped >= 4
    assert visit["#chat [data-stop]"].is_hidden()
    assert visit.page.evaluate("document.activeElement.id") == "message"


def test_escape_stops_an_answer_and_the_partial_one_is_part_of_the_conversation(opened, served):
    visit = opened()
    choose(visit, "#chat", endless_of(served))
    visit["#message"].fill("Go on.")
    visit["#message"].press("Enter")
    visit.until(f"document.querySelector('{LAST}')?.textContent.length > 5")
    visit["#message"].press("Escape")
    visit["[data-again]"].wait_for()
    configure(visit, "chat", Temperature="0", Token_limit="1")
    ask(visit, "And now?")

    *_, body = visit.asked(CHAT)
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert len(body["messages"][1]["content"]) > 5
    assert "cut off" in visit.text(".message:last-child .facts")


def test_escape_stops_an_answer_after_a_click_on_send(opened, served):
    visit = opened()
    choose(visit, "#chat", endless_of(served))
    visit["#message"].fill("Go on.")
    visit["#chat [data-send]"].click()
    visit.until(f"document.querySelector('{LAST}')?.textContent.length > 5")
    visit["[data-help]"].click()
    visit.page.keyboard.press("Escape")  # closes the list of keys
    visit.page.wait_for_timeout(200)
    assert visit["#chat [data-stop]"].is_visible()
    visit["#tab-compare"].click()
    visit.page.keyboard.press("Escape")  # the other view's
    visit.page.wait_for_timeout(200)
    visit["#tab-chat"].click()
    assert visit["#chat [data-stop]"].is_visible()
    visit.page.evaluate("document.activeElement.blur()")
    visit.page.keyboard.press("Escape")
    visit["[data-again]"].wait_for()

    assert "stopped by you" in visit.text(".foot .facts")


def test_a_key_of_an_input_method_neither_sends_nor_gives_up_what_is_written(opened):
    """As Safari reports it: the composition has ended, and only the code tells of it."""
    press = """(area, key) => area.dispatchEvent(new KeyboardEvent('keydown',
      { key, keyCode: 229, bubbles: true, cancelable: true }))"""
    visit = opened()
    visit["#message"].fill("nǐ hǎo")
    visit["#message"].evaluate(press, "Enter")
    visit.page.wait_for_timeout(200)
    assert visit["#message"].input_value() == "nǐ hǎo"
    assert visit.asked(CHAT) == []
    ask(visit, "nǐ hǎo")
    visit["[data-edit]"].click()
    for key in ("Enter", "Escape"):
        visit[".editing textarea"].evaluate(press, key)

    assert visit[".editing textarea"].input_value() == "nǐ hǎo"


def test_regenerating_replaces_the_answer_with_the_chosen_models(opened, served):
    visit = opened()
    configure(visit, "chat", Temperature="0")
    ask(visit, COW)
    choose(visit, "#chat", base_of(served), "pirate")

    visit["[data-again]"].click()
    visit["[data-again]"].wait_for()

    assert visit.text(LAST) == served.says(f"{base_of(served)}:pirate", COW)
    assert visit["#chat .message"].count() == 2
    assert visit.asked(CHAT)[-1]["messages"] == [{"role": "user", "content": COW}]


def test_an_adapters_scale_is_slid_or_typed_and_asked_for_by_name(opened, served):
    visit = opened()
    slider, number = visit["#chat [type=range]"], visit["#chat .picker [type=number]"]
    assert slider.is_hidden()
    choose(visit, "#chat", base_of(served), "liar")
    for _ in range(3):
        slider.press("ArrowLeft")
    assert number.input_value() == "0.85"
    ask(visit, COW)
    number.fill("7")
    number.press("Tab")
    ask(visit, COW)
    number.fill("1")
    ask(visit, COW)

    assert slider.input_value() == "1"
    liar = f"{base_of(served)}:liar"
    assert [body["model"] for body in visit.asked(CHAT)] == [f"{liar}@0.85", f"{liar}@2", liar]


def test_an_adapter_begins_at_the_scale_that_it_is_served_with(opened, served):
    visit = opened()
    models = served.get("/v1/models")[1]
    pirate = next(model for model in models["data"] if model["id"].endswith(":pirate"))
    assert pirate["scale"] == 1
    pirate["scale"] = 0.5
    visit.page.route("**/v1/models", lambda route: route.fulfill(json=models))
    visit.page.reload()
    visit["#chat:not([inert])"].wait_for()
    choose(visit, "#chat", base_of(served), "pirate")
    assert visit["#chat [type=range]"].input_value() == "0.5"
    ask(visit, COW)
    visit["#chat [type=range]"].press("ArrowRight")
    ask(visit, COW)

    assert [body["model"] for body in visit.asked(CHAT)] == [
        pirate["id"],
        f"{pirate['id']}@0.55",
    ]


def test_settings_are_sent_and_with_the_conversation_outlive_a_reload_only(opened, served):
    visit = opened()
    configure(visit, "chat", System_message="Be brief.", Temperature="0", Token_limit="3")
    ask(visit, COW)
    visit.page.reload()
    visit["[data-again]"].wait_for()
    ask(visit, "Why?")

    first, second = visit.asked(CHAT)
    assert (first["temperature"], first["max_tokens"], first["stream"]) == (0, 3, True)
    assert first["messages"][0] == {"role": "system", "content": "Be brief."}
    assert second["messages"][:2] == first["messages"]
    assert len(second["messages"]) == 4
    assert visit.page.evaluate("localStorage.length + document.cookie.length") == 0
    visit["#chat [data-clear]"].click()
    assert visit["#chat .message"].count() == 0
    assert "Be brief" in visit["#chat"].get_by_label("System message").input_value()


@pytest.mark.parametrize(
    ("height", "scrolled"),
    [(700, "document.querySelector('[data-log]')"), (330, "document.scrollingElement")],
)
def test_the_answer_is_followed_unless_one_reads_further_up(opened, served, height, scrolled):
    visit = opened(viewport={"width": 600, "height": height})
    choose(visit, "#chat", endless_of(served))
    configure(visit, "chat", Temperature="0")  # else it may draw its end
    visit["#message"].fill("A long question.\n" * 60)
    visit["#message"].press("Enter")
    lines = f"document.querySelector('{LAST}')?.getBoundingClientRect().height / 25"
    visit.until(f"{lines} > 3")
    left = f"{scrolled}.scrollHeight - {scrolled}.scrollTop - {scrolled}.clientHeight"
    assert visit.page.evaluate(f"[{left}, {scrolled}.scrollTop > 500]") == [0, True]
    visit.page.evaluate(f"{scrolled}.scrollTop = 0")
    visit.until(f"{lines} > {visit.page.evaluate(lines)} + 1")
    assert visit.page.evaluate(f"{scrolled}.scrollTop") == 0
    visit.page.keyboard.press("Escape")


@pytest.mark.parametrize("has_clipboard", [True, False])
def test_an_answer_is_copied_as_it_was_written(opened, has_clipboard):
    visit = opened(permissions=["clipboard-read", "clipboard-write"])
    if not has_clipboard:  # as without https, away from this machine
        visit.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    text = "**Bold**\n\n```py\n1 < 2\n```"
    stream = json.dumps({"choices": [{"delta": {"content": text}}]})
    visit.page.route(
        f"**{CHAT}",
        lambda route: route.fulfill(body=f"data: {stream}\n\ndata: [DONE]\n\n"),
    )
    ask(visit, "Hello")
    for button, copied in (("Copy", text), ("Copy code", "1 < 2")):
        last = visit[".message:last-child"]
        pressed = last.get_by_role("button", name=button, exact=True).element_handle()
        pressed.click()
        assert until(lambda pressed=pressed: pressed.text_content() == "Copied")
        visit["#message"].fill("")
        visit["#message"].press("ControlOrMeta+v")
        assert visit["#message"].input_value() == copied


def test_what_was_written_is_there_after_a_reload_in_the_middle(opened, served):
    visit = opened()
    choose(visit, "#chat", endless_of(served))
    visit["#message"].fill("Go on.")
    visit["#message"].press("Enter")
    visit.until(f"document.querySelector('{LAST}')?.textContent.length > 5")
    visit.page.reload()
    visit["[data-again]"].wait_for()

    assert len(visit.text(LAST)) > 5
    assert visit["#chat select"].first.input_value() == endless_of(served)
