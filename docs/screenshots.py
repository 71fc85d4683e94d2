"""Draws the pages' pictures from the real programs: `make pictures`.

It exports the demo's models, holds a conversation in `decant chat` on a pseudo-terminal, whose
screen becomes SVG, and opens the page of `decant serve` in headless Chromium. Each picture is drawn
in light and in dark.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

import pyte  # noqa: E402
from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

from exporter.demo import make_demo_models  # noqa: E402
from exporter.llamacpp.toolchain import cache_folder  # noqa: E402
from tests.runtime.gateway.page.conftest import chromium  # noqa: E402
from tests.support.page_runs import environment, stop  # noqa: E402
from tests.support.terminal import Terminal  # noqa: E402

PICTURES = CHECKOUT / "docs" / "pictures"
LIGHTS = ("light", "dark")
COLUMNS, ROWS = 88, 25  # of the terminal
ALTERNATE = re.compile(rb"\x1b\[\?1049h.*?\x1b\[\?1049l", re.DOTALL)
CELL, LINE, MARGIN = 8.4, 19, 16  # pixels: a character's width, a line's height, the border
WIDTH, HEIGHT = 880, 600  # of the page, in CSS pixels
SHARPNESS = 1.5  # pixels of a picture in one CSS pixel
QUESTIONS = ("What is the capital of France?", "Where does a bee live?")
FONTS = "ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"
COLOURS: dict[str, dict[str, str]] = {
    "light": {
        "paper": "#ffffff", "frame": "#d0d7de", "default": "#1f2328", "black": "#1f2328",
        "red": "#cf222e", "green": "#116329", "brown": "#7d4e00", "blue": "#0550ae",
        "magenta": "#8250df", "cyan": "#1b6c79", "white": "#59636e", "brightblack": "#59636e",
    },
    "dark": {
        "paper": "#0d1117", "frame": "#3d444d", "default": "#e6edf3", "black": "#8b949e",
        "red": "#ff7b72", "green": "#56d364", "brown": "#e3b341", "blue": "#79c0ff",
        "magenta": "#d2a8ff", "cyan": "#56d4dd", "white": "#e6edf3", "brightblack": "#8b949e",
    },
}  # fmt: skip


def prepare(folder: Path) -> dict[str, str]:
    """Export the demo's models as my-base.gguf and my-lora; the variables for programs there."""
    models = make_demo_models(cache_folder() / "demo")
    env = environment(folder)
    (folder / "my-lora").symlink_to(models.adapter)
    decant = str(folder / "bin" / "decant")
    for arguments in (
        ["export", "-", "--base", str(models.base), "-o", "my-base.gguf"],
        ["export", "./my-lora", "--to", "lora", "-o", "pirate.gguf"],
    ):
        subprocess.run([decant, *arguments, "--quiet"], cwd=folder, env=env, check=True)
    return env


def conversation(folder: Path, env: dict[str, str]) -> list[list[Any]]:
    """The terminal's lines after a conversation, each as pyte's cells."""
    command = "decant chat my-base.gguf --adapter pirate=./pirate.gguf"
    shell = f"cd '{folder}' && printf '$ {command}\\n' && exec {command} --temperature 0 --no-save"
    with Terminal(["sh", "-c", shell], columns=COLUMNS, rows=ROWS, **env) as terminal:
        terminal.ready()
        terminal.enter(QUESTIONS[0])
        terminal.send("/compare\r")
        terminal.until("keep")
        terminal.send("2\r")
        terminal.ready()
        for line in ("/clear", QUESTIONS[1], "/scale 0", "/regen"):
            terminal.enter(line)
        return shown(terminal.raw)


def shown(raw: bytes) -> list[list[Any]]:
    """The lines of a screen after this output.

    pyte knows neither dim text, which is grey here, nor the alternate screen, which is left out.
    """
    screen = pyte.Screen(COLUMNS, ROWS)
    pyte.ByteStream(screen).feed(ALTERNATE.sub(b"", raw).replace(b"\x1b[2m", b"\x1b[90m"))
    lines = range(screen.cursor.y + 1)
    return [[screen.buffer[line][column] for column in range(COLUMNS)] for line in lines]


def svg(lines: list[list[Any]], light: str) -> str:
    """The lines as SVG; every run of equal cells is a text of a fixed length."""
    colours = COLOURS[light]
    width = COLUMNS * CELL + 2 * MARGIN
    height = len(lines) * LINE + 2 * MARGIN
    texts = [
        text
        for number, cells in enumerate(lines)
        for text in texts_of(cells, MARGIN + LINE * (number + 0.75), colours)
    ]
    paint = f'fill="{colours["paper"]}" stroke="{colours["frame"]}"'
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}">',
            f'<rect x="1" y="1" width="{width - 2:.0f}" height="{height - 2:.0f}" rx="8" {paint}/>',
            f'<g font-family="{FONTS}" font-size="14" xml:space="preserve">',
            *texts,
            "</g>",
            "</svg>\n",
        )
    )


def texts_of(cells: list[Any], y: float, colours: dict[str, str]) -> Iterator[str]:
    """The SVG texts of one line."""
    at = 0
    for (colour, bold, underlined), group in groupby(cells, lambda c: (c.fg, c.bold, c.underscore)):
        text = "".join(cell.data for cell in group)
        fill = colours.get(colour) or f"#{colour}"
        more = ' font-weight="bold"' * bold + ' text-decoration="underline"' * underlined
        for words in re.finditer(r"\S+( \S+)*", text):
            yield (
                f'<text x="{MARGIN + (at + words.start()) * CELL:.1f}" y="{y:.1f}" fill="{fill}"'
                f'{more} textLength="{len(words[0]) * CELL:.1f}">{escape(words[0])}</text>'
            )
        at += len(text)


@contextmanager
def served(folder: Path, env: dict[str, str]) -> Iterator[str]:
    """The address of `decant serve` with the base and its adapter."""
    argv = [str(folder / "bin" / "decant"), "serve", "my-base.gguf", "--port", "0", "--json"]
    argv += ["--quiet", "--adapter", "pirate=./pirate.gguf"]
    server = subprocess.Popen(
        argv, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert server.stdout is not None
    text = ""
    for line in server.stdout:
        text += line
        if line.startswith("}"):
            break
    try:
        yield str(json.loads(text)["url"])
    finally:
        stop(server)


def chat(page: Page) -> None:
    page.locator("#chat select").nth(1).select_option(label="pirate")
    page.locator("#message").fill(QUESTIONS[1])
    page.locator("#message").press("Enter")
    page.locator("[data-again]").wait_for()


def compare(page: Page) -> None:
    page.locator("#tab-compare").click()
    page.locator(".column:nth-child(2) select").nth(1).select_option(label="pirate")
    page.locator("#prompt").fill(QUESTIONS[0])
    page.locator("#compare [data-send]").click()
    page.locator("#compare mark").last.wait_for()


def photograph(browser: Browser, url: str, light: str) -> None:
    """Save the page's picture in one light."""
    context = browser.new_context(
        color_scheme=light,  # type: ignore[arg-type] - one of two
        viewport={"width": WIDTH, "height": HEIGHT},
        device_scale_factor=SHARPNESS,
        locale="en-GB",
    )
    page = context.new_page()
    page.goto(url)
    page.locator("#chat:not([inert])").wait_for(state="attached")
    chat(page)
    page.screenshot(path=str(PICTURES / f"page-{light}.png"))
    compare(page)
    page.screenshot(path=str(PICTURES / f"compare-{light}.png"))
    context.close()


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "models"
        env = prepare(folder)
        lines = conversation(folder, env)
        for light in LIGHTS:
            (PICTURES / f"repl-{light}.svg").write_text(svg(lines, light), encoding="utf-8")
        with sync_playwright() as playwright, served(folder, env) as url:
            path = chromium(playwright)
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            for light in LIGHTS:
                photograph(browser, url, light)
            browser.close()


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
