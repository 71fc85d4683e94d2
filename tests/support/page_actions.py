"""A page's reader with keys alone, and what the server answers while its actions are tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.runtime.gateway.page.conftest import DONE, ENDED, delta, event

if TYPE_CHECKING:
    from tests.runtime.gateway.page.conftest import Visit

MOST_STOPS = 60
TITLES = ".threads .thread > span:first-child"
NOTES: Any = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"notes"}
WHOLE = delta(content="An `answer`.", reasoning_content="Hm.") + ENDED + DONE
CUT = delta(content="An") + event(choices=[{"delta": {}, "finish_reason": "length"}]) + DONE
SAID = {"role": "user", "content": "One."}
FACTS = {"reasoning": "", "tokens": None, "speed": None, "error": None, "isStopped": False}
CODE = {"role": "assistant", "model": "m", "content": "```py\nx = 1\n```", **FACTS}
LONG = [{**SAID, "content": f"{number}"} for number in range(130)]
NAME = """() => {
  const e = document.activeElement;
  return (e.ariaLabel ?? e.labels?.[0]?.textContent ?? e.textContent).trim();
}"""
# why nobody would know where the focus is; empty where that is plain
UNSEEN = """() => {
  const e = document.activeElement;
  if (e === document.body) return 'nothing has the focus';
  const name = `${e.tagName}.${e.className} ${e.textContent.slice(0, 40)}`;
  const { width, height, top, bottom } = e.getBoundingClientRect();
  if (!e.checkVisibility() || !width || !height) return `hidden: ${name}`;
  if (bottom < 0 || top > innerHeight) return `out of sight: ${name}`;
  if (!e.matches(':focus-visible')) return `without a mark: ${name}`;
  return getComputedStyle(e).outlineStyle === 'none' ? `without an outline: ${name}` : '';
}"""


@dataclass
class Keys:
    """Presses keys in a page, and looks after each where the focus is."""

    visit: Visit

    @property
    def name(self) -> str:
        """The name of what has the focus."""
        return str(self.visit.page.evaluate(NAME))

    def check(self) -> None:
        assert self.visit.page.evaluate(UNSEEN) == ""

    def press(self, *names: str) -> None:
        for name in names:
            self.visit.page.keyboard.press(name)
            self.check()

    def type(self, text: str) -> None:
        self.visit.page.keyboard.type(text)

    def to(self, name: str, *, back: bool = False) -> None:
        """Go to what has a name that begins so, by Tab or Shift+Tab."""
        stops: list[str] = []
        while not stops or not stops[-1].startswith(name):
            assert len(stops) < MOST_STOPS, stops
            self.visit.page.keyboard.press("Shift+Tab" if back else "Tab")
            stops.append(self.name)
        self.check()

    def until(self, condition: str) -> None:
        self.visit.until(condition)
        self.check()

    def shown(self, selector: str) -> None:
        self.visit[selector].first.wait_for()
        self.check()

    def send(self) -> None:
        self.to("Message")
        self.type("One.")
        self.press("Enter")
        self.shown("[data-again]")
