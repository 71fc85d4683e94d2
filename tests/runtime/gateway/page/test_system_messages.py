"""The system message of each conversation: kept, exported, and brought back."""

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
FIELD = "#chat .settings textarea >> nth=0"
TITLES = ".threads .thread > span:first-child"
HOSTILE = "<img src=x onerror=window.ran=1>\n\nDon't be brief."


@pytest.fixture
def visit(opened) -> Visit:
    """A window with room for the list, and the settings open; answers that need no model."""
    visit: Visit = opened(viewport=WIDE)
    visit.page.route(f"**{CHAT}", answering(delta(content="An answer.") + ENDED + DONE))
    visit["#chat .settings summary"].click()
    return visit


def system(visit: Visit) -> str:
    return visit[FIELD].input_value()


def exported(visit: Visit, kind: str) -> str:
    with visit.page.expect_download() as waiting:
        visit[".threads"].get_by_role("button", name=kind, exact=True).click()
    return Path(waiting.value.path()).read_text()


def bring(visit: Visit, text: str) -> None:
    """Choose a file to import."""
    file: Any = {"name": "a.json", "mimeType": "application/json", "buffer": text.encode()}
    visit["[data-import-files]"].set_input_files(file)


def open_conversation(visit: Visit, title: str) -> None:
    visit[f"{TITLES} >> text={title}"].click()
    assert until(lambda: title in visit.texts(".said"))


def test_it_is_exported_and_comes_back_with_the_conversation(visit):
    visit[FIELD].fill(HOSTILE)
    ask(visit, "One.")
    text, data = exported(visit, "Markdown"), exported(visit, "JSON")
    visit["#chat [data-clear]"].click()
    visit[FIELD].fill("")
    bring(visit, data)
    assert until(lambda: len(visit.texts(TITLES)) == 2)

    assert text.startswith(f"# One.\n\n## System message\n\n{HOSTILE}\n\n## You\n\nOne.")
    assert json.loads(data)["system"] == HOSTILE
    assert until(lambda: system(visit) == HOSTILE)
    assert "Don't be brief." in visit.text("[data-system]")
    assert visit.page.evaluate("window.ran") is None
    ask(visit, "Two.")
    assert visit.asked(CHAT)[-1]["messages"][0] == {"role": "system", "content": HOSTILE}


def test_each_conversation_keeps_its_own(visit):
    visit[FIELD].fill("First.")
    ask(visit, "One.")
    visit["#chat [data-clear]"].click()
    assert system(visit) == "First."
    visit[FIELD].fill("Second.")
    ask(visit, "Two.")
    open_conversation(visit, "One.")
    assert until(lambda: system(visit) == "First.")
    visit[FIELD].fill("Changed, and not sent.")
    visit[".threads [aria-current]"].click()
    visit.page.wait_for_timeout(200)
    assert system(visit) == "Changed, and not sent."
    open_conversation(visit, "Two.")
    assert until(lambda: system(visit) == "Second.")
    open_conversation(visit, "One.")
    assert until(lambda: system(visit) == "Changed, and not sent.")
    visit.page.reload()
    visit["[data-again]"].wait_for()

    assert system(visit) == "Changed, and not sent."
    found = {thread["title"]: thread["system"] for thread in kept(visit)[0]}
    assert found == {"One.": "Changed, and not sent.", "Two.": "Second."}


def test_what_was_typed_for_a_new_chat_is_not_lost_by_a_look_at_another_one(visit):
    ask(visit, "One.")
    visit["#chat [data-clear]"].click()
    visit[FIELD].fill("For a new one.")
    open_conversation(visit, "One.")
    assert until(lambda: system(visit) == "")
    visit["#chat [data-clear]"].click()

    assert system(visit) == "For a new one."


def test_a_conversation_that_knows_none_leaves_the_field_alone(visit):
    keep(visit, [{"role": "user", "content": "Old."}])
    visit["#chat .settings summary"].click()
    visit["#chat [data-clear]"].click()
    visit[FIELD].fill("Mine.")
    open_conversation(visit, "Old.")
    assert system(visit) == "Mine."
    old = json.loads(exported(visit, "JSON"))
    assert old.pop("system") == "Mine."
    visit[FIELD].fill("Another one.")
    bring(visit, json.dumps(old))
    assert until(lambda: len(visit.texts(TITLES)) == 2)
    visit.page.wait_for_timeout(200)

    assert system(visit) == "Another one."
