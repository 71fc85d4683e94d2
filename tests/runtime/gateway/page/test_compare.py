"""The view Compare, used in a real browser against a real gateway."""

from __future__ import annotations

import pytest

from tests.runtime.conftest import PROMPTS
from tests.runtime.gateway.conftest import serving
from tests.runtime.gateway.page.conftest import CHAT, base_of, choose, endless_of, visiting

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

COW = PROMPTS[2]


def test_columns_answer_at_once_and_words_that_differ_are_marked(opened, served):
    visit = opened("compare")
    visit["#compare [data-add]"].click()
    visit["#prompt"].fill(COW)
    visit["#prompt"].press("Enter")
    visit.until("document.querySelectorAll('#compare mark').length >= 2")

    names = [f"{base_of(served)}{adapter}" for adapter in ("", ":pirate", ":liar")]
    answers = [served.says(name, COW) for name in names]
    assert visit.texts("#compare .answer > .markdown") == answers
    assert {body["temperature"] for body in visit.asked(CHAT)} == {0}
    for column, answer in enumerate(answers[1:], 2):
        own = f".column:nth-child({column})"
        marked = " ".join(visit.texts(f"{own} mark")).split()
        assert marked
        assert not set(marked) & set(answers[0].split())
        assert set(marked) == set(answer.split()) - set(answers[0].split())
        count = f"{len(marked)} of {len(answer.split())} words differ from column 1."
        assert visit.text(f"{own} > .facts") == count
    assert visit[".column:nth-child(1) mark"].count() == 0


@pytest.mark.parametrize("way", ["button", "key"])
def test_columns_stream_side_by_side_are_stopped_together_and_removed(opened, served, way):
    visit = opened("compare")
    for column in (1, 2):
        choose(visit, f".column:nth-child({column})", endless_of(served))
    visit["#prompt"].fill("Go on.")
    visit["#compare [data-send]"].click()
    lengths = "[...document.querySelectorAll('#compare .answer')].map(e => e.textContent.length)"
    visit.until(
        f"(() => {{ const l = {lengths}; return l.length == 2 && l.every(n => n > 10) }})()"
    )
    if way == "button":
        visit["#compare [data-stop]"].click()
    else:
        visit.page.keyboard.press("Escape")  # the focus is nowhere after the click
    visit["#compare [data-send]"].wait_for()

    assert [text.split(" · ")[-1] for text in visit.texts(".foot .facts")] == ["stopped by you"] * 2
    assert visit["[aria-label='Remove column 1']"].is_hidden()
    visit["#compare [data-add]"].click()
    visit["[aria-label='Remove column 1']"].click()
    assert visit.texts(".column h2") == ["Column 1", "Column 2"]


def test_columns_with_a_process_each_take_no_turns(browser, voices, served, tmp_path):
    """With `--isolate`; where they share a process, the gateway counts the turns."""
    arguments = ("--isolate", "--parallel", "1", "--threads", "1")
    with (
        serving(tmp_path, *voices, *arguments) as isolated,
        visiting(browser, isolated.url) as visit,
    ):
        visit.open()
        visit["#tab-compare"].click()
        visit["#compare [data-add]"].click()
        visit["#prompt"].fill(COW)
        visit["#compare [data-send]"].click()
        visit.until("document.querySelectorAll('#compare mark').length >= 2")

        names = [f"{base_of(served)}{adapter}" for adapter in ("", ":pirate", ":liar")]
        assert [body["model"] for body in visit.asked(CHAT)] == names
        answers = [served.says(name, COW) for name in names]
        assert visit.texts("#compare .answer > .markdown") == answers
        assert visit["[data-turns]"].is_hidden()
        assert isolated.metric("decant_epoch_switches_total") == 0
