"""The page in Chromium: no script of the data's runs, it fits a phone, and its keys work."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.evaluation.report.report_folder import PAGE, write_report
from tests.support.evaluations import SMALL, TUNE, cases, evaluation
from tests.support.hostile_texts import PAYLOADS, poisoned

pytestmark = pytest.mark.programs
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CONTRASTS = """() => {
  const parts = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => {
    const [r, g, b] = parts(c).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if ((parts(colour)[3] ?? 1) > 0) return colour;
    }
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || e.closest("script, dialog, .unseen, title, desc")) continue;
    if (!e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(e.closest("text") ? style.fill : style.color), light(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
  }
  return found;
}"""
WIDER = """() => [...document.querySelectorAll("body *")].filter((e) =>
  !e.closest(".scroll, svg") && e.getBoundingClientRect().right > innerWidth + 1).length"""


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        path = found or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.fail("there is no Chromium: `apt-get install chromium`")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A report in a tab, and what it said or asked for."""

    def __init__(self, browser, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.problems, self.requests = [], []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda said: self.problems.append(said.text))
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, folder):
        self.url = (folder / PAGE).as_uri()
        self.page.goto(self.url)
        return self.page


@pytest.fixture
def visits(browser):
    made = []

    def visit(**options):
        made.append(Visit(browser, **options))
        return made[-1]

    yield visit
    for one in made:
        one.context.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    items = cases("labels", 60)
    write_report(folder, evaluation(items, "labels"), items)
    return folder


def test_no_script_of_the_data_runs(visits, tmp_path):
    payload = "".join(PAYLOADS)
    items = [poisoned(case, payload) for case in cases("labels", 4)]
    items += [poisoned(c, p) for p, c in zip(PAYLOADS, cases("labels", len(PAYLOADS)), strict=True)]
    results = poisoned(evaluation(cases("labels", 40), "labels"), payload)
    write_report(tmp_path, replace(results, deciding=results.metrics[0].name), items)
    visit = visits(viewport={"width": 360, "height": 800})
    page = visit.open(tmp_path)
    for item in page.locator("details.item > summary").all()[:12]:
        item.click()
    page.wait_for_timeout(200)

    assert page.evaluate("typeof window.hacked") == "undefined"
    assert visit.problems == []
    assert [url for url in visit.requests if url not in (visit.url, "data:,")] == []
    assert page.url == visit.url
    assert page.locator("details.item").count() == len(items)
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_policy_stops_a_script_that_gets_in(visits, folder, tmp_path):
    made = (folder / PAGE).read_text("utf-8")
    bad = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'></body>"
    (tmp_path / PAGE).write_text(made.replace("</body>", bad), "utf-8")
    visit = visits()
    page = visit.open(tmp_path)
    page.wait_for_timeout(200)

    assert page.evaluate("typeof window.hacked") == "undefined"
    assert visit.problems


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(visits, folder, scheme):
    page = visits(color_scheme=scheme).open(folder)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")

    assert page.evaluate(CONTRASTS) == []


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_never_scrolls_sideways(visits, folder, width):
    page = visits(viewport={"width": width, "height": 800}).open(folder)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")

    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(WIDER) == 0


def test_it_is_complete_without_scripts(visits, folder):
    page = visits(java_script_enabled=False).open(folder)
    item = page.locator("details.item").first
    item.locator("summary").click()

    assert item.locator(".answers").is_visible()
    assert page.locator("#filters").is_hidden()
    assert page.locator("details.item").count() == 60
    assert page.locator("figure svg[role=img]").count() == 11


def shown(page):
    return page.locator("details.item:visible")


def test_filters_narrow_the_list(visits, folder):
    visit = visits()
    page = visit.open(folder)
    items = cases("labels", 60)
    page.select_option("[name=verdict]", "win")
    assert shown(page).count() == sum("win" in c.verdicts.values() for c in items)
    page.select_option("[name=model]", label=SMALL)
    assert shown(page).count() == sum(c.verdicts.get(SMALL) == "win" for c in items)
    page.select_option("[name=model]", label=TUNE)
    page.select_option("[data-column=language]", label="de")
    expected = sum(c.verdicts[TUNE] == "win" and c.columns["language"] == "de" for c in items)
    assert shown(page).count() == expected
    assert page.locator("output").text_content() == f"{expected} of 60"
    page.select_option("[name=verdict]", "")
    page.select_option("[data-column=language]", "*")
    page.fill("[name=text]", "TICKET-0007")
    assert shown(page).count() == 1
    page.fill("[name=text]", "")
    page.select_option("[name=order]", "line")
    lines = shown(page).evaluate_all("all => all.map((e) => Number(e.dataset.line))")
    assert lines == list(range(1, 61))
    assert visit.problems == []


def test_keys_move_search_and_help(visits, folder):
    visit = visits()
    page = visit.open(folder)
    opened = "() => [...document.querySelectorAll('details[open]')].map((e) => e.id)"
    for _ in range(2):
        page.keyboard.press("j")
    assert page.evaluate(opened) == ["item-2"]
    page.keyboard.press("k")
    assert page.evaluate(opened) == ["item-1"]
    page.keyboard.press("/")
    page.keyboard.type("jk")
    assert page.input_value("[name=text]") == "jk"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.click("#help button")
    assert page.locator("#help").is_hidden()
    assert visit.problems == []


def test_paper_is_white_and_leaves_closed_items_out(visits, folder):
    page = visits(color_scheme="dark").open(folder)
    page.locator("details.item > summary").first.click()
    page.emulate_media(media="print", color_scheme="dark")

    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert shown(page).count() == 1
    assert page.locator("#filters").is_hidden()
