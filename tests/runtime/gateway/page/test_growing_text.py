"""Long answers while they grow: they look, read and copy as the whole text does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.runtime.gateway.page.conftest import FLAT, GROWN, KEY, Visit, visiting

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

# writes a text piece by piece, laid out after each, and keeps what stands then as `grown`
GROW = """async ([text, step]) => {
  const { LiveMarkdown } = await import('/page/live_markdown.js');
  const root = document.createElement('div');
  root.className = 'markdown';
  root.id = 'grown';
  document.getElementById('grown')?.remove();
  document.querySelector('[data-log]').append(root);
  window.live = new LiveMarkdown(root);
  for (let at = step; at < text.length + step; at += step) {
    live.write(text.slice(0, at));
    root.getBoundingClientRect();
    await new Promise(requestAnimationFrame);
  }
  await new Promise(requestAnimationFrame);
}"""
# where each word stands, from the root's corner
PLACES = """() => {
  const root = document.getElementById('grown');
  const { left, top } = root.getBoundingClientRect();
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  const places = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    for (const { 0: word, index } of node.data.matchAll(/\\S+/g)) {
      range.setStart(node, index);
      range.setEnd(node, index + word.length);
      for (const box of range.getClientRects()) {
        if (box.width) places.push([word, Math.round(box.left - left), Math.round(box.top - top)]);
      }
    }
  }
  return places;
}"""
COPIED = """() => {
  getSelection().selectAllChildren(document.getElementById('grown'));
  const plain = getSelection().toString();
  const clipboardData = new DataTransfer();
  const copy = new ClipboardEvent('copy', { clipboardData, bubbles: true, cancelable: true });
  document.getElementById('grown').firstChild.dispatchEvent(copy);
  return copy.defaultPrevented ? clipboardData.getData('text/plain') : plain;
}"""
WHOLE = """async (text) => {
  const { rendered } = await import('/page/markdown.js');
  const whole = document.createElement('div');
  whole.append(...rendered(text));
  live.close();
  const root = document.getElementById('grown').cloneNode(true);
  root.querySelectorAll(':scope > .part').forEach((part) => part.replaceWith(...part.childNodes));
  return [root.innerHTML, whole.innerHTML];
}"""

# as WHOLE, with what has become whole frame by frame
SETTLED = f"""async (text) => {{
  const {{ rendered }} = await import('/page/markdown.js');
  const whole = document.createElement('div');
  whole.append(...rendered(text));
  return [{FLAT}(document.getElementById('grown')).innerHTML, whole.innerHTML];
}}"""
# a text that was complete after some frames, and goes on
GOES_ON = f"""async ([before, text, frames]) => {{
  const {{ rendered }} = await import('/page/markdown.js');
  live.write(before);
  live.settle();
  for (let left = frames; left; left -= 1) await new Promise(requestAnimationFrame);
  for (let at = before.length; at < text.length + 397; at += 397) {{
    live.write(text.slice(0, at));
    await new Promise(requestAnimationFrame);
  }}
  const whole = document.createElement('div');
  whole.append(...rendered(text));
  return [{FLAT}(document.getElementById('grown')).innerHTML, whole.innerHTML];
}}"""
COUNT = "document.querySelectorAll('#grown :is(ol, ul, table)').length"

SENTENCE = "Some words, and *more* of them with `code` and a [link](https://a.example/b). "
CHINESE = "这是一个很长的段落，没有空格，也没有换行，浏览器在任何字之间都可以换行。"
TEXTS = {
    "paragraph": SENTENCE * 150,
    "plain paragraph": "The quick brown fox jumps over the lazy dog and goes on. " * 200,
    "paragraph without spaces": CHINESE * 300,
    "lines": "".join(f"line {n} with **some** words and `code`\n" for n in range(300)),
    "list": "".join(f"{n}. item {n} with **some** words\n" for n in range(1, 300)),
    "loose list": "".join(f"- item {n} with **some** words\n\n" for n in range(300)),
    "table": "| a | b |\n|---|--:|\n"
    + "".join(f"| row {n} | {'x' * (n // 9)} |\n" for n in range(300)),
}  # fmt: skip
FROZEN = ".frozen, .pieces, .piece"
# what may be written in a long paragraph, in any order
MARKS = (
    "word", "more words", "*", "**", "*em*", "**strong**", "_", "__", "`", "``", "`code`", "[",
    "](https://a.example/)", "]", "[a](https://a.example)", "$x$", "$", "$5", "\\(", "\\)", "\\*",
    "&amp;", "~~", "~~no~~", "https://a.example/b", "<https://a.example>", "![a](https://a.example)",
    "(", ")", "\n", "end.", "snake_case", "- a", "1. b", "a | b", "|-|", "> c", "***", "\\", "&",
)  # fmt: skip


@pytest.fixture(scope="module")
def visit(browser, served) -> Iterator[Visit]:
    with visiting(browser, served.url, viewport={"width": 900, "height": 700}) as visit:
        yield visit.open(f"#key={KEY}")


@pytest.fixture(params=TEXTS)
def grown(visit, request) -> tuple[Visit, str]:
    """A page on which a long text has grown, and the text."""
    text = TEXTS[request.param]
    visit.page.evaluate(GROW, [text, 397])
    return visit, text


def test_what_is_laid_out_in_pieces_looks_as_the_whole_does(grown):
    visit, text = grown
    assert visit.page.locator(f"#grown :is({FROZEN})").count() > 0
    growing = visit.page.evaluate(PLACES)
    copied = visit.page.evaluate(COPIED)
    built, whole = visit.page.evaluate(WHOLE, text)

    assert built == whole
    assert apart(growing, visit.page.evaluate(PLACES)) == []
    assert copied.strip() == visit.page.evaluate(COPIED).strip()


def test_a_complete_text_becomes_whole_frame_by_frame(grown):
    visit, text = grown
    growing = visit.page.evaluate(PLACES)
    before, after = visit.page.evaluate(f"[{COUNT}, live.settle() ?? {COUNT}]")
    assert before == after
    visit.until(f"{COUNT} <= 1")
    built, whole = visit.page.evaluate(SETTLED, text)

    assert built == whole
    assert apart(growing, visit.page.evaluate(PLACES)) == []


@pytest.mark.parametrize("frames", [0, 1, 2, 40])
@pytest.mark.parametrize("kind", ["list", "table", "paragraph"])
def test_a_complete_text_goes_on_whatever_is_whole_by_then(visit, kind, frames):
    text = TEXTS[kind]
    visit.page.evaluate(GROW, [text[:9000], 397])
    built, whole = visit.page.evaluate(GOES_ON, [text[:9000], text, frames])

    assert built == whole


def test_a_list_in_the_middle_of_an_answer_becomes_one_list(visit):
    visit.page.evaluate(GROW, [TEXTS["list"] + "\n\nand then\n\n" + TEXTS["table"], 397])
    visit.until("document.querySelectorAll('#grown ol').length === 1")


def test_a_complete_table_fits_another_window(visit):
    visit.page.evaluate(GROW, [TEXTS["table"], 397])
    visit.page.evaluate("live.settle()")
    visit.until(f"{COUNT} === 1")
    visit.page.set_viewport_size({"width": 500, "height": 700})
    visit.until("document.querySelectorAll('#grown .piece').length === 0")
    built, whole = visit.page.evaluate(WHOLE, TEXTS["table"])
    visit.page.set_viewport_size({"width": 900, "height": 700})

    assert built == whole


def apart(one: list[Any], other: list[Any]) -> list[Any]:
    """The first words that do not stand where they stood."""
    assert len(one) == len(other)
    moved = [(a, b) for a, b in zip(one, other, strict=True) if far(a, b)]
    return moved[:3]


def far(one: list[Any], other: list[Any]) -> bool:
    distances = (abs(a - b) for a, b in zip(one[1:], other[1:], strict=True))
    return one[0] != other[0] or max(distances) > 1


def test_lines_are_laid_out_anew_where_the_window_changes(visit):
    text = TEXTS["paragraph"]
    visit.page.evaluate(GROW, [text, 397])
    assert visit["#grown .frozen"].count() > 3
    visit.page.set_viewport_size({"width": 700, "height": 700})
    visit.until("document.querySelectorAll('#grown .frozen').length === 0")
    growing = visit.page.evaluate(PLACES)
    built, whole = visit.page.evaluate(WHOLE, text)
    visit.page.set_viewport_size({"width": 900, "height": 700})

    assert built == whole
    assert len(growing) > 1000


def test_a_selection_stays_while_more_is_written_and_at_the_end(visit):
    kept = visit.page.evaluate(
        """async (text) => {
          const { LiveMarkdown } = await import('/page/live_markdown.js');
          const root = document.getElementById('grown');
          root.replaceChildren();
          const live = new LiveMarkdown(root);
          const grow = async (from, to) => {
            for (let at = from; at < to; at += 300) {
              live.write(text.slice(0, at));
              await new Promise(requestAnimationFrame);
            }
          };
          await grow(300, 5000);
          const [first, last] = [root.querySelector('.frozen'), root.querySelector('p').lastChild];
          getSelection().setBaseAndExtent(first.firstChild, 3, last, 2);
          const selected = getSelection().toString();
          await grow(5000, 7000);
          const during = getSelection().toString() === selected;
          live.close();
          return [selected.length > 1000, during, getSelection().toString().length];
        }""",
        TEXTS["plain paragraph"],
    )

    assert kept[:2] == [True, True]
    assert kept[2] > 1000


def test_a_long_paragraph_grows_into_what_the_whole_text_gives(visit):
    chance = random.Random(7)
    for _ in range(12):
        words = chance.choices(MARKS, k=1500)
        text = "".join(word + chance.choice(("", " ", " ", " ")) for word in words)
        cuts = sorted(chance.choices(range(len(text)), k=60))
        assert visit.page.evaluate(GROWN, [text, cuts]) is None


def test_long_lists_and_tables_grow_into_what_the_whole_text_gives(visit):
    chance = random.Random(8)
    kinds = {
        "list": ("- a", "- *b*", "  - deep", "  goes on", "lazy", "- [x] done", "- c"),
        "table": ("|a|b|c|", "|a|", "| `x` | y |", "|\\||b|", "|*em*|b|c|d|"),
        "code": ("if a:", "  b = 'c'", "", "# d", '"""', "~~~", "`", "\tx"),
    }  # fmt: skip
    heads = {"list": "- a\n", "table": "|a|b|c|\n|-|-:|-|\n", "code": "```py\n"}
    ends = {"list": "\n- loose\n- b\n", "table": "\ntext", "code": "```\ntext\n"}
    for kind, lines in kinds.items():
        for end in ("", ends[kind], ends[kind] * 3):
            text = heads[kind] + "\n".join(chance.choices(lines, k=700)) + "\n" + end
            cuts = sorted(chance.choices(range(len(text)), k=60))
            assert visit.page.evaluate(GROWN, [text, cuts]) is None, kind


def test_marks_reach_over_four_thousand_characters_and_no_further(visit):
    def markup(text: str) -> str:
        root = "document.createElement('div')"
        code = f"""async (text) => {{ const {{ rendered }} = await import('/page/markdown.js');
            const root = {root}; root.append(...rendered(text)); return root.innerHTML; }}"""
        return str(visit.page.evaluate(code, text))

    for length, tags in ((3990, 1), (4010, 0)):
        words = ("word " * 1000)[: length - 1] + "x"
        assert markup(f"*{words}*").count("<em>") == tags
        assert markup(f"`{words}`").count("<code>") == tags
        assert markup(f"[{words}](mailto:a@b.example)").count("<a ") == tags
