"""Files in a conversation: texts and pictures, by button, drop and paste, within the limits."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from tests.runtime.gateway.conftest import serving, until
from tests.runtime.gateway.page.conftest import (
    CHAT,
    DONE,
    ENDED,
    Visit,
    answering,
    ask,
    base_of,
    delta,
    kept,
    visiting,
)
from tests.support.png import make_png
from tests.support.vision import make_seeing

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

NOTES = "First line.\n```\n<b>code</b>\n```\n"
QUOTED = f"notes.md:\n````\n{NOTES}````"
# a file of some bytes, handed to the page as the browser does
TRANSFER = """([name, type, bytes]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(bytes)], name, { type }));
  return transfer;
}"""
PASTE = """(area, clipboardData) => area.dispatchEvent(
  new ClipboardEvent('paste', { clipboardData, bubbles: true, cancelable: true }))"""
# files named slow… are read when the test calls release()
SLOW = """() => {
  const real = Blob.prototype.arrayBuffer;
  const released = new Promise((resolve) => { window.release = resolve; });
  Blob.prototype.arrayBuffer = async function () {
    if (this.name.startsWith('slow')) await released;
    return real.call(this);
  };
}"""
# a picture that the browser reads and llama.cpp does not
WEBP = base64.b64decode("UklGRhoAAABXRUJQVlA4TA0AAAAvAAAAEAcQERGIiP4HAA==")


def given(visit: Visit, way: str, name: str, kind: str, data: bytes) -> None:
    """Attach a file by a button, by dropping or by pasting it."""
    if way == "button":
        file: Any = {"name": name, "mimeType": kind, "buffer": data}
        with visit.page.expect_file_chooser() as chooser:
            visit["[data-attach]"].click()
        chooser.value.set_files(file)
        return
    transfer = visit.page.evaluate_handle(TRANSFER, [name, kind, list(data)])
    if way == "drop":
        visit["[data-log]"].dispatch_event("dragover", {"dataTransfer": transfer})
        visit["[data-log]"].dispatch_event("drop", {"dataTransfer": transfer})
    else:
        visit["#message"].evaluate(PASTE, transfer)


def refused(visit: Visit, name: str, kind: str, data: bytes) -> str:
    """What the page says of a file that it does not take."""
    given(visit, "drop", name, kind, data)
    visit["[data-file-problems]:visible"].wait_for()
    return visit.text("[data-file-problems]")


@pytest.fixture
def visit(opened) -> Visit:
    visit: Visit = opened()
    answer = answering(delta(content="An answer.") + ENDED + DONE)
    visit.page.route(f"**{CHAT}", answer)
    return visit


@pytest.mark.parametrize("way", ["button", "drop", "paste"])
def test_a_text_file_is_quoted_with_its_name(visit, way):
    given(visit, way, "notes.md", "text/markdown", NOTES.encode())
    visit[".chips li"].wait_for()
    assert "notes.md" in visit.text(".chips li")
    ask(visit, "Read it.")

    assert visit.asked(CHAT)[-1]["messages"][0]["content"] == f"{QUOTED}\n\nRead it."
    assert visit[".chips li"].count() == 0
    assert visit.text(".said") == "Read it."
    visit[".text-file summary"].click()
    assert visit["#chat .text-file pre"].text_content() == NOTES
    visit.page.reload()
    visit["[data-again]"].wait_for()
    ask(visit, "Again.")
    assert visit.asked(CHAT)[-1]["messages"][0]["content"] == f"{QUOTED}\n\nRead it."


def test_a_file_may_be_all_of_a_message_and_be_taken_off_again(visit):
    given(visit, "drop", "notes.md", "", NOTES.encode())
    given(visit, "drop", "more.txt", "text/plain", b"more")
    visit["[aria-label='Remove more.txt']"].click()
    visit["#chat [data-send]"].click()
    visit["[data-again]"].wait_for()

    assert visit.asked(CHAT)[-1]["messages"] == [{"role": "user", "content": QUOTED}]
    assert until(lambda: kept(visit)[0][0]["title"] == "notes.md")


def test_a_message_is_sent_with_the_file_that_was_still_read(visit):
    visit.page.evaluate(SLOW)
    given(visit, "drop", "slow.md", "", NOTES.encode())
    visit["#message"].fill("Read it.")
    visit["#message"].press("Enter")
    visit["#message"].press("Enter")
    visit.page.wait_for_timeout(200)
    assert visit.asked(CHAT) == []
    assert visit.texts(".chips li") == ["Reading slow.md…"]
    visit.page.evaluate("release()")
    visit["[data-again]"].wait_for()

    (body,) = visit.asked(CHAT)
    quoted = QUOTED.replace("notes.md", "slow.md")
    assert body["messages"] == [{"role": "user", "content": f"{quoted}\n\nRead it."}]
    assert visit[".chips li"].count() == 0


def test_a_message_stays_if_its_file_turns_out_to_be_none_that_can_be_sent(visit):
    visit.page.evaluate(SLOW)
    given(visit, "drop", "slow.bin", "", b"a\0b")
    visit["#message"].fill("Read it.")
    visit["#message"].press("Enter")
    given(visit, "drop", "notes.md", "", NOTES.encode())
    visit.page.evaluate("release()")
    visit[".chips button"].wait_for()
    visit.page.wait_for_timeout(200)

    assert "neither a text" in visit.text("[data-file-problems]")
    assert visit["#message"].input_value() == "Read it."
    assert visit.asked(CHAT) == []


def test_a_message_that_waits_for_its_file_goes_into_no_other_conversation(visit):
    visit.page.evaluate(SLOW)
    given(visit, "drop", "slow.md", "", NOTES.encode())
    visit["#message"].fill("Read it.")
    visit["#message"].press("Enter")
    visit["#chat [data-clear]"].click()
    visit.page.evaluate("release()")
    visit[".chips button"].wait_for()
    visit.page.wait_for_timeout(200)

    assert visit["#message"].input_value() == "Read it."
    assert visit.asked(CHAT) == []


def test_taking_one_file_off_loses_no_other_that_is_still_read(visit):
    visit.page.evaluate(SLOW)
    given(visit, "drop", "more.txt", "text/plain", b"more")
    visit["[aria-label='Remove more.txt']"].wait_for()
    given(visit, "drop", "slow.md", "", NOTES.encode())
    visit["[aria-label='Remove more.txt']"].click()
    visit.page.evaluate("release()")
    visit["[aria-label='Remove slow.md']"].wait_for()

    assert visit[".chips li"].count() == 1


def test_a_files_tokens_are_counted_once_and_what_is_typed_after_each_pause(visit, served):
    def tokens(content: str) -> int:
        asked = {"model": base_of(served), "content": content}
        return len(served.ask("/tokenize", asked)[1]["tokens"])

    ask(visit, "Hello.")  # the meter asks only a model that is loaded
    served.says(base_of(served), "Hello.")
    given(visit, "drop", "notes.md", "", NOTES.encode())
    file = tokens(f"{QUOTED}\n\n")
    assert until(lambda: f"{file} of them typed" in visit.text("#chat [data-context]"))
    for text in ("One.", "One. Two.", "One. Two. Three."):
        visit["#message"].fill(text)
        shown = f"{file + tokens(text)} of them typed"
        assert until(lambda shown=shown: shown in visit.text("#chat [data-context]"))

    contents = [body["content"] for body in visit.asked("/tokenize")]
    assert contents == [f"{QUOTED}\n\n", "One.", "One. Two.", "One. Two. Three."]


def test_a_files_name_and_text_become_no_markup(visit):
    name, text = "<img src=x onerror=window.ran=1>.md", "<script>window.ran=1</script>"
    given(visit, "drop", name, "", text.encode())
    assert name in visit.text(".chips li")
    ask(visit, "Read it.")
    visit[".text-file summary"].click()

    assert visit["#chat .text-file pre"].text_content() == text
    assert visit["#chat .messages :is(img, script)"].count() == 0
    assert visit.page.evaluate("window.ran") is None


def test_an_edited_message_keeps_its_files(visit):
    given(visit, "drop", "notes.md", "", NOTES.encode())
    ask(visit, "One.")
    visit["[data-edit]"].click()
    visit[".editing textarea"].fill("Two.")
    visit[".editing textarea"].press("Enter")
    visit["[data-again]"].wait_for()

    assert visit.asked(CHAT)[-1]["messages"][0]["content"] == f"{QUOTED}\n\nTwo."


@pytest.mark.parametrize(
    ("name", "kind", "data", "why"),
    [
        ("a.zip", "application/zip", b"PK\x03\x04\xff\xfe", "neither a text in UTF-8 nor"),
        ("a.bin", "", b"a\0b", "neither a text in UTF-8 nor a picture"),
        ("a.png", "image/png", b"", "takes only text"),
        ("a.txt", "text/plain", b"a" * (2 << 20), "is too large: this server takes 1.9 MB"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_the_reason_before_it_is_sent(
    visit, name, kind, data, why
):
    said = refused(visit, name, kind, data)

    assert name in said
    assert why in said
    assert visit[".chips li"].count() == 0
    assert "1.9 MB" in str(visit["[data-attach]"].get_attribute("title"))


def test_files_of_a_whole_conversation_are_counted(visit):
    for _ in range(2):
        given(visit, "drop", "a.txt", "text/plain", b"a\n" * 400_000)
        visit[".chips li"].wait_for()
        ask(visit, "Read it.")
    given(visit, "drop", "a.txt", "text/plain", b"a\n" * 400_000)
    visit[".chips li"].wait_for()
    visit["#message"].fill("And this.")
    visit["#message"].press("Enter")

    assert "The files of this conversation have 2.3 MB" in visit.text("[data-file-problems]")
    assert visit["#message"].input_value() == "And this."
    assert len(visit.asked(CHAT)) == 2


@pytest.fixture(scope="module")
def seeing(toolchain, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("seeing")
    base = make_seeing("gemma3_vlm", folder / "base")
    export(ExportRequest((), base, ("F16",), (folder / "vlm.gguf",)), toolchain)
    (projector,) = folder.glob("mmproj*")
    projector.rename(folder / "mmproj-vlm.gguf")
    return folder / "vlm.gguf"


@pytest.fixture(scope="module")
def sighted(browser, seeing, tmp_path_factory) -> Iterator[Visit]:
    """A page over a model that takes pictures."""
    arguments = (seeing, "--limit", "pixels=4096")
    with serving(tmp_path_factory.mktemp("served"), *arguments) as served:
        with visiting(browser, served.url) as visit:
            yield visit.open()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["button", "drop", "paste"])
def test_a_picture_reaches_a_model_that_sees_and_is_shown(sighted, tmp_path, way):
    data = make_png(tmp_path / "a.png").read_bytes()
    sighted["#chat [data-clear]"].click()
    given(sighted, way, "a.png", "image/png", data)
    sighted[".chips img"].wait_for()
    ask(sighted, "What is it?")

    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is it?"},
    ]
    assert sighted.asked(CHAT)[-1]["messages"][0]["content"] == parts
    assert sighted["#chat .answer .error:visible"].count() == 0
    assert sighted.page.evaluate("document.querySelector('.picture-file img').naturalWidth") > 0


@pytest.mark.filterwarnings("ignore")
def test_other_pictures_are_sent_as_png_and_what_is_none_is_refused(sighted, tmp_path):
    sighted["#chat [data-clear]"].click()
    given(sighted, "drop", "a.webp", "image/webp", WEBP)
    sighted[".chips img"].wait_for()
    ask(sighted, "What is it?")
    sent = sighted.asked(CHAT)[-1]["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(sent.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert "cannot be read as a picture" in refused(sighted, "b.png", "image/png", b"no")
    large = make_png(tmp_path / "large.png", 65).read_bytes()
    assert "too many pixels: 65 × 65" in refused(sighted, "large.png", "image/png", large)
