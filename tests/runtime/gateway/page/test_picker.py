"""The lists of models and adapters, while adapters come and go."""

from __future__ import annotations

import pytest

from tests.runtime.gateway.conftest import serving
from tests.runtime.gateway.page.conftest import visiting

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

NAMES = "[...document.querySelectorAll('#chat select')[1].options].map(o => o.text).join()"


def test_an_adapter_that_came_is_offered_and_one_that_went_is_not(
    browser, demo_base, pirate_lora, liar_lora, tmp_path
):
    def change(path: str, **body: str) -> None:
        with served.send("POST", f"/v1/{path}_lora_adapter", body) as response:
            assert response.status == 200, response.read()

    folders = ("--allow-adapter-path", pirate_lora.parent, "--allow-adapter-path", liar_lora.parent)
    with serving(tmp_path, demo_base, *folders) as served, visiting(browser, served.url) as visit:
        visit.open()
        assert visit.page.evaluate(NAMES) == "none"
        change("load", lora_name="pirate", lora_path=str(pirate_lora))
        change("load", lora_name="liar", lora_path=str(liar_lora))
        visit["#chat select"].nth(0).hover()
        visit.until(f"{NAMES} === 'none,pirate,liar'")
        visit["#chat select"].nth(1).select_option(label="liar")
        change("unload", lora_name="pirate")
        visit["#chat h1, body"].first.hover()
        visit.page.wait_for_timeout(1100)  # the page asks once a second at most
        visit["#chat select"].nth(0).hover()
        visit.until(f"{NAMES} === 'none,liar'")
        assert visit["#chat select"].nth(1).input_value() == "base:liar"
        change("unload", lora_name="liar")
        visit["#message"].hover()
        visit.page.wait_for_timeout(1100)
        visit["#chat select"].nth(0).hover()
        visit.until(f"{NAMES} === 'none'")
