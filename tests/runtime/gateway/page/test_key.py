"""How the page comes by the server's key, and where it leaves it."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from tests.runtime.gateway.page.conftest import KEY, visiting

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]


def test_a_key_is_asked_for_until_it_is_right_and_only_this_tab_keeps_it(browser, served):
    with visiting(browser, served.url) as visit:
        visit.is_refusal_expected = True
        visit.page.goto(served.url)
        dialog = visit["#key-dialog"]
        dialog.wait_for()
        assert "a key is needed" in dialog.inner_text()
        dialog.get_by_label("API key").fill("wrong")
        with visit.page.expect_response(lambda response: response.status == 401):
            visit.page.keyboard.press("Enter")
        dialog.wait_for()
        visit.page.keyboard.press("Escape")
        visit.until("document.querySelector('#notice').innerText.includes('a key is needed')")
        visit["#notice button"].click()
        dialog.get_by_label("API key").fill(KEY)
        visit.page.keyboard.press("Enter")
        visit["#chat:not([inert])"].wait_for()

        assert visit.page.evaluate("sessionStorage['decant.key']") == json.dumps(KEY)
        assert visit.page.evaluate("localStorage.length + document.cookie.length") == 0
        assert KEY not in visit.page.content()
        assert visit.text("#notice") == ""


def test_a_key_in_the_address_leaves_it_at_once(browser, served):
    with visiting(browser, served.url) as visit:
        visit.open(f"#key={quote(KEY)}")
        assert visit.page.url == f"{served.url}/"
        visit.page.go_back()
        assert KEY not in visit.page.url
        assert not [request.url for request in visit.requests if KEY in request.url]


def test_a_key_may_be_added_to_the_address_of_an_open_page(browser, served):
    with visiting(browser, served.url) as visit:
        visit.is_refusal_expected = True
        visit.page.goto(served.url)
        visit["#key-dialog"].get_by_role("button", name="Cancel").click()
        visit.page.evaluate(f"location.hash = 'key={KEY}'")
        visit["#chat:not([inert])"].wait_for()

        assert KEY not in visit.page.url
        assert visit.text("#notice") == ""
