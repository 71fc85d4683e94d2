"""The pages for readers: their commands exist, their links lead somewhere, both languages agree."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support.documents import (
    CHECKOUT,
    FENCE,
    GENERATED,
    NOT_RUN,
    PAGES,
    PROGRAMS,
    SHELLS,
    anchors,
    blocks,
    commands,
    decant_arguments,
    links,
    problem,
    reason_not_run,
)

DOCS = CHECKOUT / "docs"
PICTURES = DOCS / "pictures"
CHINESE = {
    "README.zh-CN.md": "README.md",
    "docs/zh/cookbook.md": "docs/cookbook.md",
    "docs/zh/download.md": "docs/download.md",
    "docs/zh/faq.md": "docs/faq.md",
}
SHORTENED = (" is missing", "requires an argument.")
"""What a sentence may leave out of a command."""
LARGEST = 150_000  # bytes of a picture
SCREEN = 60  # lines of the README


def name(page: Path) -> str:
    return page.relative_to(CHECKOUT).as_posix()


ALL = [
    pytest.param(command, arguments, id=f"{name(page)}: {command}")
    for page in PAGES
    for command in commands(page, *SHELLS)
    for arguments in decant_arguments(command)
]


@pytest.mark.parametrize(("command", "arguments"), ALL)
def test_each_command_line_is_one_that_decant_takes(command, arguments):
    assert problem(arguments) is None, command


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_options_in_a_sentence_are_the_commands(page):
    """Of `decant export --fit`, and of `decant export … -q IQ2_M`."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found = [
        (line, why)
        for line in re.findall(r"`(decant [^`\n]+)`", text)
        for arguments in decant_arguments(line.replace("…", ""))
        if (why := problem(arguments)) and not why.endswith(SHORTENED)
    ]

    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "decant exprot x", "decant export x --bese y", "decant export x --to gguff",
        "decant serve x --port many", "decant tokens", "decant inspect x y",
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_found(line):
    (arguments,) = decant_arguments(line)

    assert problem(arguments)


def test_commands_stand_in_blocks_of_a_shell():
    """Else no test would see them."""
    found = [
        f"{name(page)}: {line}"
        for page in PAGES
        for block in blocks(page)
        if block.language not in SHELLS
        for line in block.text.splitlines()
        if PROGRAMS.match(line)
    ]

    assert not found


def test_each_command_that_no_test_runs_has_a_reason():
    lines = [(name(p), line) for p in PAGES for line in commands(p, "bash", "powershell")]

    assert not [found for found in lines if reason_not_run(found[1]) is None]
    for pattern, _ in NOT_RUN:
        assert any(re.match(pattern, line) for _, line in lines), pattern


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_anchors_lead_somewhere(page):
    broken = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert not broken


def test_a_missing_anchor_would_be_found():
    assert "doctor" not in anchors(GENERATED)
    assert "decant-doctor" in anchors(GENERATED)


@pytest.mark.parametrize("chinese", CHINESE)
def test_both_languages_have_the_same_commands(chinese):
    for languages in (("sh",), ("bash",)):
        ours = commands(CHECKOUT / chinese, *languages)
        assert ours == commands(CHECKOUT / CHINESE[chinese], *languages)
        assert ours or languages == ("bash",)


def test_each_page_of_docs_is_in_the_index_and_in_the_site():
    listed = set(links(DOCS / "index.md"))
    site = (CHECKOUT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        path = page.relative_to(DOCS).as_posix()
        assert path == "index.md" or path in listed, path
        assert re.search(rf": {re.escape(path)}$", site, re.MULTILINE), path


def test_pictures_are_small_and_used_in_both_lights():
    found = sorted(path.name for path in PICTURES.iterdir())
    used = {Path(link).name for page in PAGES for link in links(page)}

    assert found
    for path in PICTURES.iterdir():
        assert path.stat().st_size <= LARGEST, path.name
        assert path.name in used, path.name
        light = re.sub(r"-(dark|light)\.", "-{}.", path.name)
        assert {light.format("dark"), light.format("light")} <= set(found)


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readme_is_one_screen(readme):
    assert len((CHECKOUT / readme).read_text(encoding="utf-8").splitlines()) <= SCREEN


def test_the_losses_are_those_of_the_benchmark():
    table = (DOCS / "quality.md").read_text(encoding="utf-8")
    measured = re.findall(
        r"^\| smollm2-135m .*?\| ([\d.]+) ± .*?\| ([\d.]+) ±", table, re.MULTILINE
    )
    page = (DOCS / "which-quant.md").read_text(encoding="utf-8")
    said = page.partition("## How exact")[2].partition("## Which one")[0]

    stock, chosen = zip(*measured, strict=True)
    assert re.findall(r"0\.\d+", said) == [f"{float(loss):.3f}" for loss in (*stock, *chosen)]


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readmes_figures_are_those_of_the_benchmark(readme):
    page = (DOCS / "how-it-works.md").read_text(encoding="utf-8")
    usual, ours = (
        [float(value) for value in re.findall(r"([\d.]+) (?:s \(|GB)", line)]
        for line in page.splitlines()
        if line.startswith(("| usual road", "| decant, with verification"))
    )
    shares = [f"{ours[at] / usual[at]:.2f}" for at in (0, -1)]

    text = (CHECKOUT / readme).read_text(encoding="utf-8")
    assert re.findall(r"(\d\.\d\d) [×倍]", text) == shares
