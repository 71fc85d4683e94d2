"""Makes matplotlib's SVG part of a page: its colours become the page's, its ids unique."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET  # reads only what matplotlib has written
from collections.abc import Iterator

from exporter.core.terminal_text import without_controls

INK, FAINT, LINE, SURFACE = "#010101", "#010102", "#010103", "#010104"
SERIES = ("#010201", "#010202", "#010203", "#010204", "#010205", "#010206")
PAGE_COLOURS = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    LINE: "var(--line)",
    SURFACE: "var(--surface)",
    **{colour: f"var(--s{number})" for number, colour in enumerate(SERIES, 1)},
}
"""The page's colours, by the colour that a plot is drawn with in their place."""
DROPPED = {"metadata", "style"}
PRESENTED = {
    "fill", "fill-opacity", "font-size", "font-weight", "opacity", "stroke", "stroke-dasharray",
    "stroke-dashoffset", "stroke-linecap", "stroke-linejoin", "stroke-opacity", "stroke-width",
    "text-anchor",
}  # fmt: skip
"""Properties of matplotlib's styles that are kept, as attributes: the page allows no styles."""
UNREADABLE = re.compile("[\ud800-\udfff\ufffe\uffff]")
"""Characters that XML does not have; control characters are removed before."""
REFERENCE = re.compile(r"url\(#([\w.-]+)\)")
FONT = re.compile(r"(?:(?P<weight>bold|\d{3}) )?(?P<size>[\d.]+px)")


def plain_label(text: str, most: int) -> str:
    """The text on one line, of at most `most` characters, without those that XML lacks."""
    line = " ".join(UNREADABLE.sub("\ufffd", without_controls(text)).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def inline_svg(source: str, name: str, title: str, description: str) -> str:
    """The plot as an element of a page, with a title and a description for screen readers.

    `name`: the plot's name on the page; ids begin with it.
    """
    root = ET.fromstring(source)  # noqa: S314 - matplotlib's
    prune(root)
    used = set(references(root))
    for element in root.iter():
        element.tag = local(element.tag)
        element.attrib = dict(page_attributes(element, name, used))
    box = root.attrib["viewBox"]
    root.attrib = {
        "viewBox": box,
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-description",
    }
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(tag, {"id": f"{name}-{'description' if place else 'title'}"})
        element.text = plain_label(text, len(text))
        root.insert(place, element)
    return ET.tostring(root, encoding="unicode")


def prune(element: ET.Element) -> None:
    for child in list(element):
        if local(child.tag) in DROPPED:
            element.remove(child)
        else:
            prune(child)


def local(name: str) -> str:
    return name.rpartition("}")[2]


def references(root: ET.Element) -> Iterator[str]:
    """The ids that elements refer to."""
    for element in root.iter():
        for attribute, value in element.attrib.items():
            if local(attribute) == "href":
                yield value.removeprefix("#")
            yield from REFERENCE.findall(value)


def page_attributes(element: ET.Element, name: str, used: set[str]) -> Iterator[tuple[str, str]]:
    """The attributes of an element as the page has them."""
    for attribute, value in element.attrib.items():
        match local(attribute):
            case "style":
                yield from presentation(value, name)
            case "id":
                if value in used:
                    yield "id", f"{name}-{value}"
            case "href":
                yield "href", f"#{name}-{value.removeprefix('#')}"
            case plain:
                yield plain, prefixed(value, name)


def presentation(style: str, name: str) -> Iterator[tuple[str, str]]:
    """The properties of a style as attributes, in the page's colours."""
    for declaration in style.split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font" and (found := FONT.match(value)):  # matplotlib before 3.10
            yield "font-size", found["size"]
        elif key in PRESENTED:
            yield key, PAGE_COLOURS.get(value, prefixed(value, name))


def prefixed(value: str, name: str) -> str:
    return REFERENCE.sub(rf"url(#{name}-\1)", value)
