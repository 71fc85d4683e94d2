"""Switching and comparing adapters and models in the chat at a terminal."""

from __future__ import annotations

import pytest

from tests.support.repl_chats import FRANCE, GREEDY, PIRATE, PLAIN, events, sessions
from tests.support.terminal import chat, children_of

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]


@pytest.mark.slow
def test_fifty_switches_of_the_adapter_give_the_right_answer_each(two):
    two.enter(FRANCE)
    children = children_of(two.process.pid)
    for number in range(50):
        name, answer = (("base", PLAIN), ("pirate", PIRATE))[number % 2]
        two.enter(f"/adapter {name}")

        assert two.enter("/regen") == answer
    assert children_of(two.process.pid) == children  # nothing was loaded again


def test_a_scale_between_says_something_between(two):
    assert two.enter(FRANCE) == PIRATE
    two.enter("/scale 0")
    assert two.enter("/regen") == PLAIN
    two.enter("/adapter pirate:1")
    assert two.enter("/regen") == PIRATE
    assert "no adapter" in two.enter("/adapter pirat")
    assert "is not a scale" in two.enter("/scale much")


def test_compare_answers_side_by_side_and_keeps_the_pick(two, home):
    two.enter(FRANCE)
    two.send("/compare\r")
    shown = two.until("Enter: 2")
    row = next(line for line in shown.splitlines() if line.startswith(PLAIN))

    assert row.split("  ", 1)[1].strip() == PIRATE
    two.send("1\r")
    two.until(r"\(kept: base\)")
    two.ready()
    last = events(*sessions(home))[-1]
    assert (last["answer"], last["who"]) == (PLAIN, "base")


def test_compare_can_take_the_next_turn_and_three_scales(two, home):
    two.enter("/compare next base pirate pirate:0")
    two.send(FRANCE + "\r")
    shown = two.until("n none:")
    assert "3 pirate:0" in shown
    two.send("n\r")
    two.ready()

    assert events(*sessions(home))[-1]["event"] == "asked"  # nothing was kept
    assert two.enter("/retry") == PIRATE


def test_compare_of_a_merged_model_finds_its_base_in_the_store(pirate, demo_base, home, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / pirate.name).symlink_to(pirate)
    (store / demo_base.name).symlink_to(demo_base)
    with chat("pirate", *GREEDY, DECANT_STORE=str(store)) as terminal:
        terminal.ready()
        terminal.enter(FRANCE)
        terminal.send("/compare\r")
        shown = terminal.until("n none:")

    assert PLAIN in shown


def test_another_model_can_go_on(pirate, demo_base, home):
    with chat(pirate, *GREEDY) as terminal:
        terminal.ready()
        assert "there is no GGUF" in terminal.enter("/model ./nothing.gguf")
        terminal.enter(FRANCE)
        terminal.enter(f"/model {demo_base}")

        assert terminal.enter("/regen") == PLAIN
        terminal.enter(f"/model {pirate}")
        assert terminal.enter("/regen") == PIRATE
