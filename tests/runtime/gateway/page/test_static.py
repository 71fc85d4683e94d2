"""The page's files as they are served, and what they must not hold."""

from __future__ import annotations

import re

import pytest

from runtime.gateway.page_files import FOLDER
from tests.runtime.gateway.page.conftest import KEY, visiting

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

SCRIPTS = sorted(FOLDER.glob("*.js"))
POLICY = {
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'",
    "img-src 'self' data:", "frame-src 'self'", "base-uri 'none'", "form-action 'none'",
    "frame-ancestors 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'",
}  # fmt: skip
SINKS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|eval\(|Function\(|cssText"
)
# what an answer must never bring about, each tried from inside the page
FORBIDDEN = {
    "a script in the page": """() => { const s = document.createElement('script');
        s.append('window.ran = 1'); document.body.append(s); }""",
    "a script from elsewhere": """() => { const s = document.createElement('script');
        s.setAttribute('src', 'http://127.0.0.1:9/x.js'); document.body.append(s); }""",
    "markup made of text": "() => { document.body.innerHTML = '<img src=x onerror=window.ran=1>' }",
    "a handler in markup": """() => { document.body.setAttribute('onclick', 'window.ran = 1');
        document.body.click(); }""",
    "a picture from elsewhere": "() => { new Image().src = 'http://127.0.0.1:9/x.png' }",
    "a request to elsewhere": "() => fetch('http://127.0.0.1:9/').catch(() => {})",
    "a frame": """() => { const f = document.createElement('iframe');
        f.src = 'http://127.0.0.1:9/'; document.body.append(f); }""",
    "a style in markup": "() => document.body.setAttribute('style', 'color: red')",
}


def test_every_file_is_served_to_anybody_with_its_type_and_the_policy(served):
    types = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
    types |= {".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
    paths = {"/": FOLDER / "index.html"} | {f"/page/{f.name}": f for f in FOLDER.iterdir()}
    for path, file in paths.items():
        with served.send("GET", path, headers={"Authorization": ""}) as response:
            assert response.status == 200, path
            assert response.read() == file.read_bytes()
            assert response.getheader("Content-Type") == types[file.suffix]
            assert set(response.getheader("Content-Security-Policy").split("; ")) == POLICY
            assert response.getheader("X-Content-Type-Options") == "nosniff"
            assert response.getheader("Referrer-Policy") == "no-referrer"
            assert response.getheader("Cache-Control") == "no-cache"


@pytest.mark.parametrize("tags", ["{}", "W/{}", '"other", {}', "*"])
def test_a_file_that_the_browser_has_is_not_sent_again(served, tags):
    with served.send("HEAD", "/page/main.js") as head:
        assert (head.status, head.read()) == (200, b"")
        assert int(head.getheader("Content-Length")) == (FOLDER / "main.js").stat().st_size
        tag = head.getheader("ETag")
    with served.send("GET", "/page/main.js", headers={"If-None-Match": tags.format(tag)}) as again:
        assert (again.status, again.read()) == (304, b"")
        assert again.getheader("ETag") == tag
    with served.send("GET", "/page/main.js", headers={"If-None-Match": '"other"'}) as changed:
        assert changed.status == 200


@pytest.mark.parametrize(
    "path", ["/page/", "/page/none.js", "/page/../static.py", "/page/%2e%2e/static.py", "/page/.x"]
)
def test_nothing_but_the_pages_files_is_served(served, path):
    assert served.get(path)[0] == 404
    assert served.ask("/page/main.js", {})[0] == 405


def test_the_files_hold_no_script_style_or_address_but_their_own():
    index = (FOLDER / "index.html").read_text()

    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|https?://", index)
    for name in re.findall(r'(?:src|href)="([^"]+)"', index):
        assert (FOLDER.parent / name).is_file()
    preloaded = re.findall(r'modulepreload" href="page/([^"]+)"', index)
    assert {*preloaded, "main.js"} == {script.name for script in SCRIPTS}
    for sheet in FOLDER.glob("*.css"):
        assert not re.search(r"url\(|@import|https?://", sheet.read_text())
    for script in SCRIPTS:
        text = script.read_text()
        assert not SINKS.search(text), script.name
        assert len(text.splitlines()) <= 400
        for imported in re.findall(r'from "([^"]+)"', text):
            assert (FOLDER / imported).is_file()


def test_the_browser_refuses_whatever_is_not_the_pages_own(browser, served):
    """And a test of the page would see it."""
    with visiting(browser, served.url) as visit:
        visit.open(f"#key={KEY}")
        for name, act in FORBIDDEN.items():
            try:
                visit.page.evaluate(act)
            except Exception as error:  # noqa: BLE001 - playwright's own, where the script threw
                visit.problems.append(str(error))
            visit.page.wait_for_timeout(50)
            assert visit.problems, name
            visit.problems.clear()
        assert visit.page.evaluate("window.ran") is None
        visit.requests.clear()
