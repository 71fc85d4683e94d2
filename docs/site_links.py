"""Prepares pages for the site: links to files outside docs/ become plain text with their path.

MkDocs publishes docs/ alone. On a forge these links lead to the file; in the site there is none.
After the build it lists the links to other sites, which are not checked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!docs/)([\w./-]+?)(?:#[\w-]*)?\)")
ELSEWHERE = re.compile(r"\]\((https?://[^)\s]+)\)")
BESIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)*(haproxy\.cfg)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return BESIDE.sub(r"`docs/\2`", OUTSIDE.sub(in_words, markdown))


def on_post_build(config: dict[str, Any], **_: Any) -> None:
    pages = sorted(Path(config["docs_dir"]).rglob("*.md"))
    for page in pages:
        for address in ELSEWHERE.findall(page.read_text(encoding="utf-8")):
            print(f"not checked: {address} in {page.name}")


def in_words(link: re.Match[str]) -> str:
    """The link's text, followed by the file's path if the text does not name it."""
    text, path = link[1], link[2]
    name = path.rpartition("/")[2]
    return f"`{path}`" if name == text else f"{text} (`{path}`)"
