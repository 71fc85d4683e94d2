"""How smooth the page stays: a long history, and a long answer while it is written and at its end.

What is bounded is the processor time that the page's thread takes for one frame, from Chromium's
trace: the time on the clock depends on what else this machine does. A machine that takes longer for
a text of known length may take longer for a frame, in the same proportion.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.runtime.gateway.page.conftest import KEY, LAST, Visit, keep, visiting

if TYPE_CHECKING:  # the fast tests are collected where there is no playwright
    from playwright.sync_api import Browser

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.programs,
    pytest.mark.alone,
]

FRAME_MS = 1000 / 60
LONGEST_MS = 50  # from here on, browsers call a task long
KNOWN_MS = 24.0
"""Processor time of a frame that lays out KNOWN, on two cores of an EPYC that are free for it.

There, an idle page takes 0.5 ms a frame, and what is measured below keeps to 60 frames a second.
"""
# lays out a text of known length in each of 30 frames
KNOWN = """() => new Promise((resolve) => {
  const place = document.createElement('div');
  document.querySelector('[data-log]').append(place);
  let left = 30;
  const draw = () => {
    const words = Array.from({ length: 2500 }, (_, n) => `word${n} `);
    place.replaceChildren(...words.map((word, n) => {
      const part = document.createElement(n % 5 ? 'span' : 'em');
      part.append(word);
      return part;
    }));
    place.getBoundingClientRect();
    left -= 1;
    if (left) requestAnimationFrame(draw);
    else resolve(place.remove());
  };
  requestAnimationFrame(draw);
})"""
PIECE = 400  # characters; 100 pieces a second are 10,000 tokens a second
MESSAGES = 2000
SECTION = """## Part {n}

Some *words* about `code` and **more** of them, with a [link](https://a.example/{n}) and $x_{n}$.

- [x] one
- two, which goes on for a while until the line is full and the next one has to begin
  1. deep

```python
def f_{n}(a: int, b: str = "text") -> None:
    return a + {n}  # a comment
```

| a | b |
|---|--:|
| {n} | `c` |

"""
ANSWERS = {
    "markdown": "".join(SECTION.replace("{n}", str(n)) for n in range(230))[:100_000],
    "code": "```python\n" + 'def f(a, b="c"):\n    return a + 1  # why\n\n' * 2200,
    "one paragraph": "Some words, and *more* of them. " * 3100,
    "words": "The quick brown fox jumps over the lazy dog and goes on. " * 1750,
    "lines": "".join(f"line {n} with **some** words and `code`\n" for n in range(2400)),
    "list": "".join(f"- item {n} with **some** words and `code`\n" for n in range(2300)),
    "table": "| a | b | c |\n|---|--:|---|\n"
    + "".join(f"| row {n} | {n * 7} | some `code` and words |\n" for n in range(2200)),
    "formulas": "".join(
        f"The value $x_{{{n}}}^2 + \\frac{{a}}{{b}}$ is\n\n"
        f"$$\n\\sum_{{i=1}}^{{{n}}} \\sqrt{{i}} = \\int_0^1 f(x)\\,dx\n$$\n\n"
        for n in range(1000)
    )[:100_000],
}
# a server that streams an answer in pieces, ten milliseconds apart
STREAMING = """([text, size]) => {
  const real = window.fetch;
  window.fetch = async (url, options) => {
    if (!String(url).endsWith('/v1/chat/completions')) return real(url, options);
    const encoder = new TextEncoder();
    const event = (fields) => encoder.encode(`data: ${JSON.stringify(fields)}\\n\\n`);
    let at = 0;
    const stream = new ReadableStream({
      async pull(controller) {
        await new Promise((resolve) => setTimeout(resolve, 10));
        if (at < text.length) controller.enqueue(event({ choices: [{ delta: { content: text.slice(at, at + size) } }] }));
        else {
          controller.enqueue(encoder.encode('data: [DONE]\\n\\n'));
          controller.close();
        }
        at += size;
      },
    });
    return new Response(stream, { headers: { 'Content-Type': 'text/event-stream' } });
  };
}"""  # noqa: E501 - JavaScript
# sends the message, and waits until the answer is written and nothing more changes
ANSWER = """async () => {
  document.querySelector('#chat [data-form]').requestSubmit();
  const stop = document.querySelector('#chat [data-stop]');
  await new Promise((resolve) => {
    new MutationObserver(() => { if (stop.hidden) resolve(); }).observe(stop, { attributes: true });
  });
  for (let left = 120; left; left -= 1) await new Promise(requestAnimationFrame);
}"""
CATEGORIES = ["toplevel", "devtools.timeline", "disabled-by-default-devtools.timeline"]


def history(count: int) -> list[dict[str, Any]]:
    """A conversation with messages as long as people and models write them."""
    facts = {"finish": "stop", "tokens": 90, "used": 900, "speed": 30.0, "error": None}
    question = {"role": "user", "content": "And what about the next one? " * 3}
    answer = {"role": "assistant", "model": "base", "reasoning": "", **facts}
    return [question, {**answer, "content": SECTION.replace("{n}", "7")}] * (count // 2)


class Task(NamedTuple):
    """What the page's thread does in one go."""

    ms: float
    """Processor time."""
    draws: bool
    """Whether it prepares a frame."""


def tasks_of(trace: bytes) -> list[Task]:
    """The tasks of the page's thread."""
    events = json.loads(trace)["traceEvents"]
    mains = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"].get("name") == "CrRendererMain"
    }
    ours = [event for event in events if (event["pid"], event["tid"]) in mains]
    frames = [event["ts"] for event in ours if event["name"] == "FireAnimationFrame"]
    tasks = [event for event in ours if event["name"].endswith("RunTask") and "tdur" in event]
    return [
        Task(
            task["tdur"] / 1000, any(task["ts"] <= at <= task["ts"] + task["dur"] for at in frames)
        )
        for task in tasks
    ]


def frames_of(tasks: list[Task]) -> list[float]:
    return [task.ms for task in tasks if task.draws]


def share(values: list[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


def traced(browser: Browser, visit: Visit, act: Callable[[], object]) -> list[Task]:
    """What the page does during `act`."""
    browser.start_tracing(page=visit.page, categories=CATEGORIES)
    act()
    return tasks_of(browser.stop_tracing())


@pytest.fixture(scope="module")
def long(browser, served) -> Iterator[Visit]:
    """A page with a conversation of 2,000 messages open."""
    with visiting(browser, served.url, viewport={"width": 1280, "height": 800}) as visit:
        visit.open(f"#key={KEY}")
        keep(visit, history(MESSAGES))
        yield visit


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_long_answer_below_a_long_history_is_drawn_in_time(browser, long, kind):
    long.page.reload()
    long["[data-again]"].wait_for()

    def known() -> list[float]:
        return frames_of(traced(browser, long, lambda: long.page.evaluate(KNOWN)))

    def answered() -> list[Task]:
        long.page.evaluate(STREAMING, [ANSWERS[kind], PIECE])
        long["#message"].fill("Go on.")
        return traced(browser, long, lambda: long.page.evaluate(ANSWER))

    before = known()
    tasks = answered()
    took = frames_of(tasks)
    shown = long[LAST].evaluate("e => e.textContent.length")
    slower = max(1, share(before + known(), 0.5) / KNOWN_MS)

    assert shown > 50_000
    assert len(took) > 50
    figures = [round(share(took, part), 1) for part in (0.5, 0.95, 1)]
    assert share(took, 0.95) <= slower * FRAME_MS, (figures, slower)
    # a frame does not take longer because much is written already
    quarter = len(took) // 4
    assert share(took[-quarter:], 0.25) <= 2 * share(took[:quarter], 0.25)
    longest = max(task.ms for task in tasks)
    if longest > slower * LONGEST_MS:  # once, it may be the browser's own, such as garbage
        longest = min(longest, max(task.ms for task in answered()))
    assert longest <= slower * LONGEST_MS, (longest, slower)


@pytest.mark.parametrize("anchor", ["auto", "none"])
def test_a_long_history_is_put_on_the_page_as_it_is_read(long, anchor):
    """In browsers that keep what is read in place by themselves, and in others."""
    long.page.reload()
    long["[data-again]"].wait_for()
    long.page.evaluate(f"document.querySelector('[data-log]').style.overflowAnchor = '{anchor}'")
    count = "document.querySelectorAll('#chat .message').length"
    log = "document.querySelector('[data-log]')"
    assert long.page.evaluate(count) == 60
    last = "document.querySelector('.message:last-child').getBoundingClientRect().bottom"
    assert long.page.evaluate(f"{last} <= innerHeight")
    read = "document.querySelectorAll('#chat .message')[30]"
    long.page.evaluate(f"window.read = {read}; read.scrollIntoView()")
    top = "read.getBoundingClientRect().top"
    long.page.wait_for_timeout(100)
    before = long.page.evaluate(top)
    long["[data-earlier]"].dispatch_event("click")
    assert long.page.evaluate(count) >= 120
    long.page.wait_for_timeout(200)
    assert abs(long.page.evaluate(top) - before) < 2
    long.page.evaluate(f"{log}.scrollTop = 0")
    long.until(f"{count} >= 180")
