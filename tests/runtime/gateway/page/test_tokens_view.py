"""The view Tokens against the tokenizing of the server."""

from __future__ import annotations

import pytest

from tests.runtime.gateway.page.conftest import Visit, base_of

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

TEXT = "Hello world!\n\tThe café's 🍷 </s>"


def tokens_shown(visit: Visit, number: int) -> list[int]:
    ids = visit["#tokens .row-of-tokens"].nth(number).locator("[role=option]")
    return ids.evaluate_all("nodes => nodes.map(node => Number(node.dataset.id))")


def test_tokens_are_the_servers_and_the_templates_are_told_apart(opened, served):
    visit = opened("tokens")
    visit["#text"].fill(TEXT)
    visit["#tokens .added"].first.wait_for()
    model = base_of(served)

    def tokenized(text: str, *, is_prompt: bool) -> list[int]:
        body = {"model": model, "content": text, "add_special": is_prompt}
        _, found = served.ask("/tokenize", body | {"parse_special": is_prompt})
        return found["tokens"]

    messages = [{"role": "user", "content": TEXT}]
    _, templated = served.ask("/apply-template", {"model": model, "messages": messages})
    alone = tokenized(TEXT, is_prompt=False)
    whole = tokenized(templated["prompt"], is_prompt=True)
    facts = visit.texts("#tokens .facts")
    assert tokens_shown(visit, 0) == alone
    assert tokens_shown(visit, 1) == whole
    assert facts[0] == (
        f"{len(alone)} tokens · {len(TEXT)} characters · {len(TEXT.encode())} bytes"
    )
    assert visit.texts("#tokens .added") == ["<s>", "<|user|>", "</s>", "<|assistant|>"]
    assert facts[1].startswith(f"{len(whole)} tokens · the template adds 4,")
    assert {"⏎", "⇥", "⟨C3⟩"} <= set(visit.texts("#tokens .token"))


def test_the_facts_of_a_token_are_a_key_away_and_texts_are_cut_while_they_are_typed(opened):
    visit = opened("tokens")
    visit["#text"].press_sequentially("The capital", delay=60)
    visit["#tokens .token"].first.wait_for()
    visit.until("document.querySelectorAll('#tokens .added').length == 4")
    visit.page.keyboard.press("Tab")
    visit.page.keyboard.press("ArrowRight")
    focused = "document.activeElement"
    id_ = visit.page.evaluate(f"{focused}.dataset.id")
    told = visit["#tokens .current"].nth(0).inner_text()

    assert told == f"Token 2 of 2: id {id_}, ·capital, bytes 20 63 61 70 69 74 61 6C"
    assert visit.page.evaluate(f"{focused}.title") == f"id {id_}"
    assert len(visit.asked("/tokenize")) < len("The capital")
    visit["[data-ids]"].check()
    shown = "getComputedStyle(document.querySelector('.token + .token'), '::after').content"
    assert visit.page.evaluate(shown) == f'"{id_}"'
    visit["#text"].fill("")
    visit["#tokens .token"].first.wait_for(state="detached")
