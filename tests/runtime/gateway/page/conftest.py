"""A real browser over a real gateway; its pages tell of everything that went wrong in them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.runtime.gateway.conftest import Served, serving
from tests.support.stored_reports import stored

if TYPE_CHECKING:  # the fast tests are collected where there is no playwright
    from playwright.sync_api import Browser, Locator, Page, Playwright, Request, Route

KEY = "page-key%of+tests"
CHAT = "/v1/chat/completions"
LAST = ".message:last-child .answer > .markdown"

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MACOS = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
MISSING = (
    "there is no Chromium to test the page with: `apt-get install chromium`,"
    " or `python -m playwright install chromium`"
)
PATIENCE_MS = 30_000  # other tests may have the processors
REFUSED_BY_POLICY = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
"""


def chromium(playwright: Playwright) -> str:
    """Debian's, Chrome's, or playwright's own; the test fails where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        candidates = (MACOS, Path(playwright.chromium.executable_path))
        found = next((str(path) for path in candidates if path.exists()), None)
    if found is None:
        pytest.fail(MISSING)
    return found


@dataclass
class Visit:
    """A page, and what it did that it should not, or asked for."""

    page: Page
    url: str
    problems: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    is_refusal_expected: bool = False

    def watch(self) -> None:
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda said: self.hear(said.type, said.text))
        self.page.on("request", self.note)

    def note(self, request: Request) -> None:
        self.requests.append(request)

    def hear(self, kind: str, text: str) -> None:
        is_refusal = text.startswith("Failed to load resource") and self.is_refusal_expected
        if kind in ("error", "warning") and not is_refusal:
            self.problems.append(text)

    def open(self, fragment: str = "") -> Visit:
        self.page.goto(f"{self.url}/{fragment}")
        self.page.wait_for_selector("#chat:not([inert])", state="attached")
        return self

    def asked(self, route: str) -> list[dict[str, Any]]:
        """The bodies that were posted to a route."""
        return [r.post_data_json for r in self.requests if r.url == f"{self.url}{route}"]

    def foreign(self) -> list[str]:
        """Requests to anywhere but the server."""
        return [r.url for r in self.requests if not r.url.startswith((f"{self.url}/", "data:"))]

    def __getitem__(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()

    def until(self, condition: str) -> None:
        """Wait until an expression of JavaScript holds; playwright's own way needs `eval`."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, f"never: {condition}"
            self.page.wait_for_timeout(20)


@contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """A page in a profile of its own; what went wrong in it fails the test at the end."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    context.add_init_script(REFUSED_BY_POLICY)
    visit = Visit(context.new_page(), url)
    visit.watch()
    try:
        yield visit
        assert visit.problems == []
        assert visit.foreign() == []
    finally:
        context.close()


Opened = Callable[..., Visit]


@pytest.fixture(scope="package")
def served(voices, endless, tmp_path_factory) -> Iterator[Served]:
    """A gateway that wants a key, over the demo's base, its adapters and a model that goes on."""
    folder = tmp_path_factory.mktemp("page")
    key_file = folder / "key"
    key_file.touch(0o600)
    key_file.write_text(KEY)
    # threads that wait for each other are slow where others have the processors
    arguments = ("--parallel", "4", "--threads", "1", "--api-key-file", key_file)
    stored(folder / "decant" / "evaluations", "one", is_complete=False)
    env = {"XDG_DATA_HOME": str(folder)}
    with serving(folder, *voices, endless, *arguments, env=env) as found:
        found.headers = {"Authorization": f"Bearer {KEY}", "Connection": "close"}
        yield found


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = chromium(playwright)
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


@pytest.fixture
def opened(browser, served) -> Iterator[Opened]:
    """Opens the page at a view, with the key in the address."""
    with ExitStack() as stack:

        def open_page(view: str = "chat", **options: Any) -> Visit:
            visit = stack.enter_context(visiting(browser, served.url, **options))
            visit.open(f"#key={KEY}")
            visit[f"#tab-{view}"].click()
            return visit

        yield open_page


KEEP = """async (messages) => {
  const { Thread } = await import('/page/thread.js');
  const { save } = await import('/page/store.js');
  const thread = new Thread();
  messages.forEach((message) => thread.add({ ...message }));
  await save(thread.record, [...thread.messages.values()]);
  sessionStorage['decant.thread'] = JSON.stringify(thread.id);
}"""
# everything that the browser keeps, as one text
KEPT = """() => new Promise((resolve) => {
  const opening = indexedDB.open('decant');
  opening.onsuccess = () => {
    const stores = opening.result.transaction(['threads', 'messages']);
    const requests = ['threads', 'messages'].map((name) => stores.objectStore(name).getAll());
    stores.oncomplete = () => {
      opening.result.close();
      resolve(requests.map(({ result }) => result));
    };
  };
})"""


# an answer's element as it is at the end: without the pieces in which it is laid out meanwhile
FLAT = """((root) => {
  const flat = root.cloneNode(true);
  for (const pieces of flat.querySelectorAll('.pieces')) {
    const [first, ...others] = pieces.children;
    others.forEach((list) => first.append(...list.childNodes));
    pieces.replaceWith(first);
  }
  for (const place of flat.querySelectorAll('.table:has(.piece)')) {
    const pieces = [...place.querySelectorAll('.piece')];
    const table = document.createElement('table');
    const rows = [...place.querySelectorAll('tbody > tr')];
    const body = document.createElement('tbody');
    body.append(...rows);
    table.append(pieces[0].tHead, body);
    place.replaceChildren(table);
  }
  flat.querySelectorAll(':scope > .part, .frozen').forEach((e) => e.replaceWith(...e.childNodes));
  return flat;
})"""
# after each prefix, what was written while it grew against the same text at once
GROWN = f"""async ([text, cuts]) => {{
  const {{ LiveMarkdown }} = await import('/page/live_markdown.js');
  const {{ rendered }} = await import('/page/markdown.js');
  const flat = {FLAT};
  const root = document.createElement('div');
  const live = new LiveMarkdown(root);
  for (const cut of [...cuts, text.length]) {{
    live.write(text.slice(0, cut));
    const whole = document.createElement('div');
    whole.append(...rendered(text.slice(0, cut)));
    const [one, other] = [flat(root).innerHTML, whole.innerHTML];
    let at = 0;
    while (one !== other && one[at] === other[at]) at += 1;
    if (one !== other) return [cut, one.slice(at - 90, at + 90), other.slice(at - 90, at + 90)];
  }}
  return null;
}}"""


def keep(visit: Visit, messages: list[dict[str, Any]]) -> None:
    """Keep a conversation in the browser, and open it."""
    visit.page.evaluate(KEEP, messages)
    visit.page.reload()
    visit["#chat:not([inert])"].wait_for(state="attached")


def kept(visit: Visit) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The conversations and messages that the browser keeps."""
    threads, messages = visit.page.evaluate(KEPT)
    return threads, messages


def base_of(served: Served) -> str:
    return served.models[0]


def endless_of(served: Served) -> str:
    return served.models[-1]


def choose(visit: Visit, root: str, base: str, adapter: str = "") -> None:
    visit[f"{root} select"].nth(0).select_option(base)
    if adapter:
        visit[f"{root} select"].nth(1).select_option(label=adapter)


def configure(visit: Visit, view: str, **values: str) -> None:
    visit[f"#{view} .settings summary"].click()
    for label, value in values.items():
        visit[f"#{view}"].get_by_label(label.replace("_", " ")).fill(value)
    visit[f"#{view} .settings summary"].click()


def ask(visit: Visit, text: str) -> str:
    """Send a message; the answer's text when it is complete."""
    visit["#message"].fill(text)
    visit["#message"].press("Control+Enter")  # on a touch screen, Enter alone begins a new line
    visit["[data-again]"].wait_for()
    return visit.text(LAST)


def event(**fields: object) -> str:
    return f"data: {json.dumps(fields)}\n\n"


def delta(**fields: str) -> str:
    return event(choices=[{"index": 0, "delta": fields, "finish_reason": None}])


def answering(stream: str) -> Callable[[Route], None]:
    return lambda route: route.fulfill(body=stream, content_type="text/event-stream")


DONE = "data: [DONE]\n\n"
ENDED = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
