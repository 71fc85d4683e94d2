"""The view Evaluate in Chromium, over the reports of a folder; no model is asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

import pytest
import uvicorn

from runtime.evaluation.report.report_folder import write_report
from runtime.gateway.asgi_app import build_app
from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog
from runtime.gateway.evaluation_reports import Reports
from runtime.gateway.page_files import page_routes
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.server import listening
from runtime.gateway.settings import Settings
from tests.runtime.gateway.page.conftest import KEY, Visit, visiting
from tests.support.evaluations import cases, evaluation
from tests.support.stored_reports import stored

if TYPE_CHECKING:
    from playwright.sync_api import Route

pytestmark = pytest.mark.programs

MODELS = {"object": "list", "data": [{"id": "a-model", "object": "model", "parent": None}]}
LONG = "data/" + "a_long_name_without_any_place_to_break_it_" * 3 + ".jsonl"
HOSTILE = """<!doctype html><title>x</title><p id=p>loaded</p><script>
const tried = {};
for (const [name, act] of Object.entries({
  key: () => parent.sessionStorage.getItem('decant.key'), storage: () => localStorage.length,
  page: () => parent.document.title, cookie: () => document.cookie,
  top: () => { if (top !== self) top.location = '/'; },
})) { try { act(); tried[name] = 'done'; } catch { tried[name] = 'refused'; } }
fetch('/v1/models').then(() => 'done', () => 'refused').then((r) => {
  tried.api = r; document.getElementById('p').textContent = JSON.stringify(tried); });
</script>"""
TOO_WIDE = """[document.documentElement, ...document.querySelectorAll('body *')]
  .filter((e) => e.checkVisibility() && !e.closest('.unseen'))
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5
    || (e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX === 'auto'))
  .map((e) => `${e.tagName}.${e.className}`)"""


@contextmanager
def served(root: Path) -> Iterator[str]:
    """The address of a gateway with a key and without models."""
    settings = Settings(keys=(KEY,))
    gateway = Gateway(settings, Catalog([]), EnginePool(settings, None), reports=Reports(root))
    config = uvicorn.Config(
        build_app(gateway, more=page_routes()), log_config=None, server_header=False
    )
    server = uvicorn.Server(config)
    with closing(listening("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "evaluations"
    folder.mkdir()
    return folder


@contextmanager
def opened(browser, root: Path, **options) -> Iterator[Visit]:
    """The page at the view, with the key in its address."""
    with served(root) as url, visiting(browser, url, **options) as visit:
        visit.page.route("**/v1/models", lambda route: route.fulfill(json=MODELS))
        visit.open(f"#key={KEY}")
        visit["#tab-evaluate"].click()
        visit.until("!document.querySelector('#evaluate').hasAttribute('aria-busy')")
        yield visit


def drawn(root: Path, name: str, count: int = 40, **changed: object) -> None:
    """A whole report, as `decant eval` writes it."""
    items = cases(count=count)
    write_report(root / name, evaluation(items), items)


def test_without_reports_the_view_says_how_to_make_one(browser, root):
    with opened(browser, root) as visit:
        assert "No evaluation yet." in visit.text("#evaluate")
        assert visit.text("#evaluate code") == "decant eval MODEL --data FILE"
        stored(root, "one")
        visit["#tab-chat"].click()
        visit["#tab-evaluate"].click()
        visit["#evaluate li button"].wait_for()
        assert "No evaluation yet." not in visit.text("#evaluate")


def test_reports_are_listed_with_what_they_found(browser, root):
    stored(root, "1", data="old.csv", began="2026-01-02T03:04:05+0000", is_complete=False)
    stored(root, "2", data="<b>new</b>.jsonl", began="2026-11-27T08:15:00+0100")
    (root / "3").mkdir()
    (root / "3" / "report.json").write_text("{")

    with opened(browser, root, timezone_id="Asia/Tokyo") as visit:
        new, old = visit.texts("#evaluate .entries li")

        assert new.splitlines()[0] == "<b>new</b>.jsonl"
        assert "is better than qwen2.5-1.5b Q8_0 in exact match" in new
        assert "support-tune Q4_K_M · 20 items · Nov 27, 2026, 16:15" in new
        assert "interrupted" in old
        assert "interrupted" not in new
        assert "Jan 2, 2026, 12:04" in old
        assert "3/report.json" in visit.text("#evaluate .notes")


def test_a_report_opens_in_the_page_and_works_there(browser, root):
    drawn(root, "whole")
    with opened(browser, root) as visit:
        visit["#evaluate .entries button"].click()
        frame = visit.page.frame_locator("#evaluate iframe")
        frame.locator("#filters").wait_for()

        assert visit["#evaluate iframe"].get_attribute("sandbox") == "allow-scripts"
        assert visit["#evaluate .entries"].is_hidden()
        assert frame.locator("body").evaluate("() => getComputedStyle(document.body).fontSize")
        assert frame.locator("#filters output").inner_text() == "40 of 40"
        frame.locator("#filters [name=text]").fill("no item has this text")
        assert frame.locator("#filters output").inner_text() == "0 of 40"
        ground = "getComputedStyle(document.body).backgroundColor"
        # its own style sheet applies: an unstyled body is transparent
        assert frame.locator("body").evaluate(f"() => {ground}") == visit.page.evaluate(ground)


def test_a_report_opens_in_a_tab_of_its_own(browser, root):
    stored(root, "one", html="<!doctype html><title>by itself</title><p>alone")
    with opened(browser, root) as visit:
        visit["#evaluate .entries button"].click()
        with visit.page.context.expect_page() as found:
            visit.page.get_by_role("link", name="Open in a tab").click()
        found.value.wait_for_load_state()

        assert found.value.title() == "by itself"
        assert found.value.evaluate("window.opener") is None
        assert KEY not in found.value.url


def test_a_reports_script_reaches_neither_the_key_nor_the_api(browser, root):
    stored(root, "evil", html=HOSTILE)
    refused = dict.fromkeys(("key", "storage", "page", "cookie", "top", "api"), "refused")
    with opened(browser, root) as visit:
        visit["#evaluate .entries button"].click()
        seen = visit.page.frame_locator("#evaluate iframe").locator("#p")
        seen.get_by_text("{").wait_for()
        assert seen.evaluate("(e) => JSON.parse(e.textContent)") == refused
        with visit.page.context.expect_page() as found:
            visit["#evaluate [data-alone]"].click()
        alone = found.value.locator("#p")
        alone.get_by_text("{").wait_for()
        by_itself = alone.evaluate("(e) => JSON.parse(e.textContent)")
        # no other page is above it, and its title is its own
        assert by_itself == refused | {"top": "done", "page": "done"}
        visit.problems.clear()  # what it was refused, the browser reports


def test_the_view_works_by_keys_alone(browser, root):
    stored(root, "1", began="2026-01-01T00:00:00Z", data="first.jsonl")
    stored(root, "2", began="2026-01-02T00:00:00Z", data="second.jsonl")
    with opened(browser, root) as visit:
        press, focused = visit.page.keyboard.press, "document.activeElement.textContent"
        visit["#tab-tokens"].focus()
        press("ArrowRight")
        assert visit.page.evaluate("location.hash") == "#evaluate"
        visit["#evaluate .entries button"].first.wait_for()
        press("Tab")  # the list of keys
        press("Tab")
        assert visit.page.evaluate(focused) == "second.jsonl"
        assert visit.page.evaluate("document.activeElement.matches(':focus-visible')")
        press("Tab")
        press("Enter")
        visit["#evaluate iframe"].wait_for()
        assert visit.page.evaluate(focused) == "All evaluations"
        assert visit.text("#evaluate .bar h2") == "first.jsonl"
        visit.until("document.getElementById('announcer').textContent === 'Report on first.jsonl'")
        steps = visit.page.evaluate("history.length")
        press("Enter")
        visit.until(f"{focused} === 'first.jsonl'")
        assert visit["#evaluate iframe"].count() == 0
        press("Enter")
        visit["#evaluate iframe"].wait_for()
        assert visit.page.evaluate("history.length") == steps


def test_a_report_that_is_gone_or_a_server_that_is_gone_is_named(browser, root):
    folder = stored(root, "one")
    with opened(browser, root) as visit:
        visit.is_refusal_expected = True
        rmtree(folder)
        visit["#evaluate .entries button"].click()
        visit["#evaluate .notice"].wait_for()
        assert "This report has been removed." in visit.text("#evaluate .notice")
        visit.page.context.set_offline(True)
        visit["#evaluate .notice button"].click()
        visit.until("document.querySelector('#evaluate .notice')?.innerText.includes('not answer')")
        visit.page.context.set_offline(False)
        stored(root, "two")
        visit["#evaluate .notice button"].click()
        visit["#evaluate .entries button"].wait_for()
        assert visit["#evaluate .notice"].count() == 0


def test_a_late_answer_does_not_hide_what_happened_since(browser, root):
    stored(root, "one")
    with opened(browser, root) as visit:
        visit.is_refusal_expected = True
        held: list[Route] = []
        visit.page.route("**/evaluations", lambda route: held.append(route))  # noqa: PLW0108 - playwright marks it
        visit["#tab-chat"].click()
        visit["#tab-evaluate"].click()
        with visit.page.expect_request("**/evaluations"):
            visit["#evaluate .entries button"].click()
        first, second = held
        second.abort()
        visit["#evaluate .notice"].wait_for()
        with visit.page.expect_response("**/evaluations"):
            first.continue_()
        visit.page.wait_for_timeout(100)

        assert visit["#evaluate .notice"].is_visible()
        assert visit["#evaluate .entries button"].count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_a_desktop_in_any_light(browser, root, scheme, tmp_path_factory):
    drawn(root, "whole")
    stored(root, "2", data=LONG, is_complete=False)
    shots = tmp_path_factory.mktemp("shots")
    with opened(browser, root, color_scheme=scheme) as visit:
        for width, height in ((1200, 800), (360, 740), (320, 640)):
            visit.page.set_viewport_size({"width": width, "height": height})
            visit["#evaluate .entries button"].first.wait_for()
            assert visit.page.evaluate(TOO_WIDE) == []
            visit.page.screenshot(path=shots / f"list-{scheme}-{width}.png")
            for place in (0, 1):
                visit["#evaluate .entries button"].nth(place).click()
                frame = visit["#evaluate iframe"]
                frame.wait_for()
                visit.page.wait_for_timeout(300)
                assert visit.page.evaluate(TOO_WIDE) == []
                assert frame.bounding_box()["height"] > height * 0.7
                visit.page.screenshot(path=shots / f"report-{place}-{scheme}-{width}.png")
                visit["#evaluate [data-back]"].click()
                visit["#evaluate .entries button"].first.wait_for()
