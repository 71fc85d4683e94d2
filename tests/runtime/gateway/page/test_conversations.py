"""The conversations that the browser keeps: the list, versions of messages, and what is in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runtime.conftest import PROMPTS
from tests.runtime.gateway.conftest import until
from tests.runtime.gateway.page.conftest import (
    CHAT,
    DONE,
    ENDED,
    KEY,
    LAST,
    Visit,
    answering,
    ask,
    base_of,
    choose,
    configure,
    delta,
    endless_of,
    keep,
    kept,
    visiting,
)
from tests.support.page_actions import LONG

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

COW = PROMPTS[2]
WIDE = {"width": 1280, "height": 800}
TITLES = ".threads .thread > span:first-child"
STAY_AT_THE_TOP = """() => {
  const log = document.querySelector('.log');
  const up = () => { log.scrollTop = 0; };
  new MutationObserver(up).observe(log.querySelector('[data-messages]'), { childList: true });
  up();
}"""
HOSTILE = "<img src=x onerror=window.ran=1> [x](javascript:window.ran=1)"


def begin(visit: Visit, *texts: str) -> None:
    """A conversation for each text, the last one open."""
    for text in texts:
        visit["#chat [data-clear]"].click()
        ask(visit, text)
    assert until(lambda: visit.texts(TITLES)[: len(texts)] == [*reversed(texts)])


def tool(visit: Visit, name: str) -> None:
    visit[".threads"].get_by_role("button", name=name, exact=True).click()


def open_at(visit: Visit, text: str) -> None:
    visit[f"{TITLES} >> text={text}"].click()
    assert until(lambda: text in visit.texts(".said"))


@pytest.fixture
def visit(opened) -> Visit:
    """A window with room for the list; answers that need no model."""
    visit: Visit = opened(viewport=WIDE)
    answer = answering(delta(content="An answer.") + ENDED + DONE)
    visit.page.route(f"**{CHAT}", answer)
    return visit


def test_conversations_outlive_the_tab_and_are_opened_from_the_list(opened, served):
    visit = opened(viewport=WIDE)
    configure(visit, "chat", Temperature="0")
    begin(visit, COW, "Why?")
    answer = visit.text(LAST)
    page = visit.page.context.new_page()  # another tab of the same browser
    page.goto(f"{served.url}/#key={KEY}")
    page.locator(f"{TITLES} >> text=Why?").click()
    page.locator("[data-again]").wait_for()

    assert page.locator(LAST).inner_text() == answer
    page.close()
    open_at(visit, COW)
    assert visit.text(LAST) == served.says(base_of(served), COW)
    assert visit.text("[aria-current] > span:first-child") == COW
    visit.page.reload()
    visit["[data-again]"].wait_for()
    assert visit.text(".said") == COW


def test_no_key_and_no_sending_of_what_is_kept(opened, served):
    visit = opened(viewport=WIDE)
    begin(visit, "One.", "Two.")
    before = len(visit.requests)
    open_at(visit, "One.")
    visit["#search"].fill("Two")
    assert until(lambda: visit.texts(TITLES) == ["Two."])
    tools = {"/v1/models/", "/page/"}
    later = [request.url for request in visit.requests[before:]]

    assert KEY not in json.dumps(kept(visit))
    assert not [url for url in later if not any(one in url for one in tools)]


def test_the_page_says_that_the_server_may_keep_prompts_too(visit):
    said = visit.text("[data-empty]") + visit.text("#chat [data-none]")

    assert "This browser keeps the conversation" in said
    assert "the server may keep the computed prompts on its disk" in said
    assert "only this browser" not in said.lower()


def test_a_search_finds_titles_and_what_was_said_in_any_case(visit):
    begin(visit, "The Tagus flows", "A bridge", HOSTILE)
    for wanted, titles in (
        ("TAGUS", ["The Tagus flows"]),
        ("an answer", [HOSTILE, "A bridge", "The Tagus flows"]),
        ("onerror=", [HOSTILE]),
        ("nothing like it", []),
    ):
        visit["#search"].fill(wanted)
        assert until(lambda titles=titles: visit.texts(TITLES) == titles), wanted
    assert visit["#chat [data-none]"].is_visible()
    assert visit.page.evaluate("window.ran") is None


def test_a_conversation_is_renamed_and_keeps_its_name(visit):
    begin(visit, "One.")
    tool(visit, "Rename")
    visit[".renaming input"].fill("Better")
    visit.page.keyboard.press("Enter")
    assert until(lambda: visit.texts(TITLES) == ["Better"])
    ask(visit, "More.")
    tool(visit, "Rename")
    visit[".renaming input"].fill("Worse")
    visit.page.keyboard.press("Escape")
    assert until(lambda: visit.texts(TITLES) == ["Better"])
    visit.page.reload()
    assert until(lambda: visit.texts(TITLES) == ["Better"])


def test_a_rename_goes_on_while_the_list_around_it_changes(visit, served):
    begin(visit, "One.")
    page = visit.page.context.new_page()
    page.goto(f"{served.url}/#key={KEY}")
    page.locator("#chat:not([inert])").wait_for()
    page.route(f"**{CHAT}", answering(delta(content="An answer.") + ENDED + DONE))
    tool(visit, "Rename")
    visit.page.keyboard.type("new ti")
    visit.page.keyboard.press("ArrowLeft")
    for text in ("Another.", "And more."):
        page.fill("#message", text)
        page.press("#message", "Enter")
        page.locator("[data-again]").wait_for()
    assert until(lambda: visit.texts(TITLES) == ["Another."])
    visit.page.wait_for_timeout(200)
    visit.page.keyboard.type("n x")
    page.close()

    assert visit[".renaming input"].input_value() == "new tn xi"
    assert visit.text(".said") == "One."
    visit.page.keyboard.press("Enter")
    assert until(lambda: visit.texts(TITLES) == ["Another.", "new tn xi"])
    assert visit.page.evaluate("document.activeElement.title") == "new tn xi"


def test_a_name_stays_that_another_tab_has_given(visit, served):
    begin(visit, "One.")
    tool(visit, "Rename")
    visit.page.keyboard.type("Mine")
    visit.page.keyboard.press("Enter")
    assert until(lambda: visit.texts(TITLES) == ["Mine"])
    page = visit.page.context.new_page()
    page.set_viewport_size(WIDE)
    page.goto(f"{served.url}/#key={KEY}")
    page.locator(f"{TITLES} >> text=Mine").click()
    page.locator("[data-again]").wait_for()
    page.get_by_role("button", name="Rename", exact=True).click()
    page.keyboard.type("Theirs")
    page.keyboard.press("Enter")
    assert until(lambda: visit.texts(TITLES) == ["Theirs"])
    ask(visit, "More.")
    visit.page.wait_for_timeout(200)

    assert [thread["title"] for thread in kept(visit)[0]] == ["Theirs"]
    assert visit.texts(TITLES) == page.locator(TITLES).all_inner_texts() == ["Theirs"]
    page.close()
    with visit.page.expect_download() as waiting:
        tool(visit, "Markdown")
    assert waiting.value.suggested_filename.startswith("Theirs")


def test_a_deleted_conversation_comes_back_whole(visit):
    begin(visit, "One.", "Two.")
    before = kept(visit)
    tool(visit, "Delete")
    assert until(lambda: visit.texts(TITLES) == ["One."])
    assert visit["#chat .message"].count() == 0
    assert {message["content"] for message in kept(visit)[1]} == {"One.", "An answer."}
    visit["[data-undo] button"].click()
    assert until(lambda: visit.texts(".said") == ["Two."])

    assert kept(visit) == before
    visit.page.once("dialog", lambda dialog: dialog.dismiss())
    visit["[data-remove-all]"].click()
    assert kept(visit) == before
    visit.page.once("dialog", lambda dialog: dialog.accept())
    visit["[data-remove-all]"].click()
    assert until(lambda: kept(visit) == ([], []))
    assert visit["#chat .message"].count() == 0


def test_tabs_share_the_list_and_what_one_deletes_is_gone_in_the_other(visit, served):
    begin(visit, "One.")
    page = visit.page.context.new_page()
    page.set_viewport_size(WIDE)
    page.goto(f"{served.url}/#key={KEY}")
    page.locator(f"{TITLES} >> text=One.").click()
    page.locator("[data-again]").wait_for()
    begin(visit, "Two.")
    assert until(lambda: page.locator(TITLES).all_inner_texts() == ["Two.", "One."])
    open_at(visit, "One.")
    tool(visit, "Delete")
    assert until(lambda: page.locator(".message").count() == 0)
    assert until(lambda: page.locator(TITLES).all_inner_texts() == ["Two."])
    page.close()


def test_deleting_while_the_answer_is_written_leaves_nothing(opened, served):
    visit = opened(viewport=WIDE)
    choose(visit, "#chat", endless_of(served))
    visit["#message"].fill("Go on.")
    visit["#message"].press("Enter")
    visit.until(f"document.querySelector('{LAST}')?.textContent.length > 5")
    tool(visit, "Delete")

    assert until(lambda: served.metric("decant_slots_used") == 0)
    visit.page.wait_for_timeout(300)
    assert kept(visit) == ([], [])


def test_an_answer_goes_on_while_another_conversation_is_open(opened, served):
    visit = opened(viewport=WIDE)
    begin(visit, "Before.")
    visit["#chat [data-clear]"].click()
    choose(visit, "#chat", endless_of(served))
    configure(visit, "chat", Temperature="0")
    visit["#message"].fill("Go on.")
    visit["#message"].press("Enter")
    visit.until(f"document.querySelector('{LAST}')?.textContent.length > 5")
    open_at(visit, "Before.")
    assert visit["#chat [data-send]"].is_visible()
    open_at(visit, "Go on.")
    length = f"document.querySelector('{LAST}').textContent.length"
    visit.until(f"{length} > {visit.page.evaluate(length)} + 3")
    visit["#chat [data-stop]"].click()
    visit["[data-again]"].wait_for()

    assert until(lambda: served.metric("decant_slots_used") == 0)
    assert visit["#chat .message"].count() == 2


def test_an_edited_message_branches_and_the_versions_are_turned(visit):
    ask(visit, "One.")
    ask(visit, "Two.")
    visit[".user [data-edit]"].first.click()
    visit[".editing textarea"].fill("Other.")
    visit[".editing textarea"].press("Enter")
    visit["[data-again]"].wait_for()
    assert visit.texts(".said") == ["Other."]
    assert visit.asked(CHAT)[-1]["messages"] == [{"role": "user", "content": "Other."}]
    visit["[aria-label='Previous version']:visible"].click()
    assert visit.texts(".said") == ["One.", "Two."]
    assert visit.page.evaluate("document.activeElement.ariaLabel") == "Next version"
    visit["[data-again]"].click()
    visit["[data-again]"].wait_for()
    assert visit.texts(".versions:visible > span") == ["1/2", "2/2"]
    visit.page.reload()
    visit["[data-again]"].wait_for()

    assert visit.texts(".said") == ["One.", "Two."]
    assert visit.texts(".versions:visible > span") == ["1/2", "2/2"]
    threads, messages = kept(visit)
    assert len(threads) == 1
    assert len(messages) == 7
    ask(visit, "Three.")
    said = [message["content"] for message in visit.asked(CHAT)[-1]["messages"]]
    assert said == ["One.", "An answer.", "Two.", "An answer.", "Three."]


def test_an_edit_is_given_up_with_escape(visit):
    ask(visit, "One.")
    visit["[data-edit]"].click()
    visit[".editing textarea"].fill("Other.")
    visit.page.keyboard.press("Escape")

    assert visit.text(".said") == "One."
    assert visit[".editing"].count() == 0
    assert visit.page.evaluate("document.activeElement.textContent") == "Edit"


def test_an_edit_waits_for_the_answer_that_is_written_and_says_so(opened, served):
    visit = opened()
    choose(visit, "#chat", endless_of(served))
    visit["#message"].fill("One.")
    visit["#message"].press("Enter")
    visit.until(f"document.querySelector('{LAST}')?.textContent.length > 5")
    visit["[data-edit]"].click()
    visit[".editing textarea"].fill("Other.")
    visit[".editing textarea"].press("Enter")
    assert "An answer is being written" in visit.text(".editing [role=alert]")
    assert visit[".editing textarea"].input_value() == "Other."
    visit["#chat [data-stop]"].click()
    visit["[data-again]"].wait_for()
    assert visit.text(".editing [role=alert]") == ""
    visit[".editing textarea"].press("Enter")
    visit.until("document.querySelector('.said').textContent == 'Other.'")
    visit["#chat [data-stop]"].click()


def test_an_answer_that_was_cut_off_is_continued_in_its_place(opened, served):
    visit = opened()
    configure(visit, "chat", Temperature="0", Token_limit="3")
    whole = served.says(base_of(served), COW)
    begun = ask(visit, COW)
    assert whole.startswith(begun.strip())
    configure(visit, "chat", Token_limit="24")
    visit["[data-proceed]"].click()
    visit["[data-again]"].wait_for()

    assert visit.text(LAST) == whole
    assert visit["#chat .message"].count() == 2
    assert visit["[data-proceed]"].count() == 0
    assert visit.asked(CHAT)[-1]["continue_final_message"] is True


def test_a_conversation_is_saved_as_markdown_and_as_json(visit, tmp_path):
    ask(visit, HOSTILE)
    visit["[data-again]"].click()
    visit["[data-again]"].wait_for()
    found = {}
    for name in ("Markdown", "JSON"):
        with visit.page.expect_download() as waiting:
            tool(visit, name)
        path = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(path)
        found[name] = path
    assert all("/" not in path.name and "<" not in path.name for path in found.values())
    text = found["Markdown"].read_text()
    assert text.startswith(f"# {HOSTILE}\n\n## You\n\n{HOSTILE}\n\n## base")
    whole = json.loads(found["JSON"].read_text())
    assert [m["content"] for m in whole["messages"]] == [HOSTILE, "An answer.", "An answer."]
    assert whole["path"] == [whole["messages"][0]["id"], whole["messages"][2]["id"]]
    assert KEY not in Path(found["JSON"]).read_text()


def test_all_earlier_messages_come_to_who_is_at_the_top_before_the_page_is_drawn(visit):
    keep(visit, LONG)
    visit.page.evaluate(STAY_AT_THE_TOP)
    visit.until(f"document.querySelectorAll('.message').length == {len(LONG)}")


def test_the_oldest_conversations_make_room_and_the_open_one_stays(visit):
    visit.page.evaluate("""async () => {
      const { save } = await import('/page/store.js');
      for (let n = 0; n < 502; n += 1) {
        await save({ id: `t${n}`, title: `${n}`, updated: n, size: 1, count: 1, chosen: [] },
          [{ thread: `t${n}`, id: 1, parent: 0, role: 'user', content: `${n}` }]);
      }
    }""")
    ask(visit, "The newest.")
    assert until(lambda: len(kept(visit)[0]) == 500)
    threads, messages = kept(visit)

    assert not {"t0", "t1", "t2"} & {thread["id"] for thread in threads}
    assert {message["thread"] for message in messages} == {thread["id"] for thread in threads}
    assert "The newest." in [thread["title"] for thread in threads]


def test_a_full_store_is_said_and_the_answer_stays_on_the_page(visit):
    visit.page.evaluate("""() => { IDBObjectStore.prototype.put = () => {
      throw new DOMException('full', 'QuotaExceededError'); } }""")
    assert ask(visit, "One.") == "An answer."
    assert "does not keep" in visit.text("[data-file-problems]")
    assert visit["#chat .threads li"].count() == 0


def test_without_a_store_the_page_works_on_and_says_so(browser, served):
    with visiting(browser, served.url) as visit:
        visit.page.add_init_script("delete IDBFactory.prototype.open;")
        visit.open(f"#key={KEY}")
        ask(visit, COW)
        assert len(visit.text(LAST)) > 5
        assert "does not keep" in visit.text("[data-file-problems]")
