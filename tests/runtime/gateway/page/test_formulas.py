"""LaTeX in answers: what it becomes, how it is copied, and that no formula breaks the page."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.runtime.gateway.page.conftest import KEY, Visit, keep, visiting

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

# each formula's elements: `name(children)`, or `name:text`
SHAPES = """async (sources) => {
  const { formulaOf } = await import('/page/latex.js');
  const shape = (e) => e.children.length ? `${e.localName}(${[...e.children].map(shape).join(' ')})`
    : e.textContent ? `${e.localName}:${e.textContent}` : e.localName;
  return sources.map((source) => shape(formulaOf(source, false).firstChild.firstChild));
}"""
MARKUP = """async (text) => {
  const { rendered } = await import('/page/markdown.js');
  const root = document.createElement('div');
  root.id = 'probe';
  root.className = 'markdown';
  root.append(...rendered(text));
  document.getElementById('probe')?.remove();
  document.querySelector('[data-log]').append(root);
  return [root.querySelectorAll('math').length, root.textContent];
}"""
# how long formulas take to be built and laid out, and how deep their elements lie
TOOK = """async (source) => {
  const { formulaOf } = await import('/page/latex.js');
  const began = performance.now();
  const formula = formulaOf(source, true);
  document.querySelector('[data-log]').append(formula);
  formula.getBoundingClientRect();
  const took = performance.now() - began;
  const depth = (e) => {
    let [level, deepest] = [[e], 0];
    for (; level.length; deepest += 1) level = level.flatMap((one) => [...one.children]);
    return deepest;
  };
  const found = depth(formula);
  formula.remove();
  return [took, found];
}"""
COPIED = """(selector) => {
  getSelection().selectAllChildren(document.querySelector(selector));
  const clipboardData = new DataTransfer();
  const copy = new ClipboardEvent('copy', { clipboardData, bubbles: true, cancelable: true });
  document.querySelector(selector).dispatchEvent(copy);
  return [copy.defaultPrevented, clipboardData.getData('text/plain')];
}"""

SHAPED = {
    "x": "mi:x",
    "-x+1": "mrow(mo:− mi:x mo:+ mn:1)",
    r"\frac{a}{b}": "mfrac(mi:a mi:b)",
    r"\frac12": "mfrac(mn:1 mn:2)",
    "x^10": "mrow(msup(mi:x mn:1) mn:0)",
    "x_1^2": "msubsup(mi:x mn:1 mn:2)",
    "{}^a": "msup(mrow mi:a)",
    "x^a^b": "mrow(msup(mi:x mi:a) msup(mrow mi:b))",
    "f'^2": "msup(mi:f mrow(mo:′ mn:2))",
    r"\sqrt{x}\sqrt[3]{x}": "mrow(msqrt(mi:x) mroot(mi:x mn:3))",
    r"\sum_{i=1}^n i": "mrow(munderover(mo:∑ mrow(mi:i mo:= mn:1) mi:n) mi:i)",
    r"\sum\nolimits_i\int\limits_0": "mrow(msub(mo:∑ mi:i) munder(mo:∫ mn:0))",
    r"\int_0^1": "msubsup(mo:∫ mn:0 mn:1)",
    r"\lim_{x\to0} f": "mrow(munder(mo:lim mrow(mi:x mo:→ mn:0)) mi:f)",
    r"\sin x": "mrow(mo:sin mi:x)",
    "1{,}5": "mrow(mn:1 mo:, mn:5)",
    r"\alpha\Omega": "mrow(mi:α mi:Ω)",
    r"\mathbb{R}\mathbf{x}\mathcal{L}\mathrm{km}": "mrow(mi:ℝ mi:𝐱 mi:ℒ mi:km)",
    r"\text{if $x$ is}": "mrow(mtext:if\xa0 mi:x mtext:\xa0is)",
    r"\hat x": "mover(mi:x mo:^)",
    r"\left(\frac a b\right.": "mrow(mo:( mfrac(mi:a mi:b))",
    r"\left[x\middle|y\right)": "mrow(mo:[ mi:x mo:| mi:y mo:))",
    r"\bigl( x \bigr)": "mrow(mo:( mi:x mo:))",
    r"\begin{pmatrix}a&b\\c&d\end{pmatrix}": "mrow(mo:( "
    "mtable(mtr(mtd(mi:a) mtd(mi:b)) mtr(mtd(mi:c) mtd(mi:d))) mo:))",
    r"\begin{cases}a&b\\c\end{cases}": "mrow(mo:{ mtable(mtr(mtd(mi:a) mtd(mi:b)) mtr(mtd(mi:c))))",
    r"a&=b\\&=c": "mtable(mtr(mtd(mi:a) mtd(mo:= mi:b)) mtr(mtd mtd(mo:= mi:c)))",
    r"\begin{aligned}a&=b\end{aligned}": "mtable(mtr(mtd(mi:a) mtd(mo:= mi:b)))",
    r"{a\over b}": "mfrac(mi:a mi:b)",
    r"\not=": "mo:≠",
    r"\overbrace{a}^n": "mover(mover(mi:a mo:⏞) mi:n)",
    r"\xrightarrow{f}": "mover(mo:→ mrow(mspace mi:f mspace))",
    r"\operatorname{rank} A": "mrow(mo:rank mi:A)",
    r"\binom n k": "mrow(mo:( mfrac(mi:n mi:k) mo:))",
    r"a\,b\quad c": "mrow(mi:a mspace mi:b mspace mi:c)",
    r"\substack{a\\b}": "mtable(mtr(mtd(mi:a)) mtr(mtd(mi:b)))",
    r"\label{x}a\tag{1}": "mrow(mi:a mrow(mspace mtext:(1)))",
    # what is not known is shown, and what is missing is empty
    r"\unknown{x}": r"mrow(mtext:\unknown mi:x)",
    r"\begin{none}x\end{none}": r"mrow(mtext:\begin{none} mi:x mtext:\end{none})",
    r"\constructor\toString": r"mrow(mtext:\constructor mtext:\toString)",
    r"\hspace{1e9em}x": "mi:x",
    "\\": "mi:\\",
    "{": "mrow",
    "}": "mi:}",
    "^": "msup(mrow mrow)",
    "&": "mtable(mtr(mtd mtd))",
    r"\frac": "mfrac(mrow mrow)",
    r"\left": r"mtext:\left",
    r"\right)": r"mrow(mtext:\right mo:))",
    r"\begin{matrix}": "mtable(mtr(mtd))",
}
"""What a formula becomes."""
READ = {
    "$x$ and \\(y\\), $$z$$ \\[w\\]": 4,
    "$$\nx\n$$": 1,
    "\\[\nx\n\\]": 1,
    "\\begin{align}\na &= b\n\\end{align}": 1,
    "| $x$ |\n|-|\n| $y$ |": 2,
    "- $x$\n> $y$": 2,
    "**$x$** [$y$](https://a.example)": 2,
    "$5 and $10": 0,
    "$5, $6 or $7.50": 0,
    "US$5 to US$6, 5$ and 6$": 0,
    "$5, $6 and $x$": 1,
    "from $5-$10": 0,
    r"\$x\$": 0,
    "`$x$`": 0,
    "```\n$x$\n```": 0,
    "$x": 0,
    "$$\nx": 0,
    "\\(x": 0,
    "\\begin{align}\nx": 0,
    "$" + "x" * 3_999 + "$ $" + "x" * 4_001 + "$": 1,
}
"""How many formulas a text has."""
HOSTILE = {
    "groups": "{" * 4000, "closed": "{" * 2000 + "}" * 2000, "fractions": r"\frac" * 790,
    "roots": r"\sqrt" * 790, "scripts": "x^" * 1900, "primes": "x'" * 1900, "signs": "-" * 3900,
    "brackets": r"\left(" * 660, "environments": r"\begin{matrix}" * 280, "cells": "&" * 3900,
    "lines": "a\\\\" * 1300, "hats": r"\hat" * 990, "over": r"a\over " * 480,
    "styles": r"\displaystyle " * 280, "texts": r"\text{$" * 560, "stacks": r"\substack{" * 390,
    "letters": "x" * 3900, "sums": r"\sum_" * 780, "braces": r"\overbrace{" * 360,
    "nested fractions": r"\frac{1}{" * 200 + "x" + "}" * 200,
    "nested matrices": r"\begin{pmatrix}" * 120 + "x" + r"\end{pmatrix}" * 120,
    "nested scripts": "x_{a^{" * 400 + "y" + "}}" * 400,
}  # fmt: skip
PIECES = (
    "{", "}", "^", "_", "&", "\\\\", "\\frac", "\\sqrt", "[", "]", "\\left", "\\right", "(", ")",
    "\\begin{cases}", "\\end{cases}", "\\text", "\\mathbb", "\\sum", "\\limits", "\\over", "'",
    "\\hat", "\\big", "\\not", "\\middle", "\\substack", "\\hspace", "\\bf", "x", "12", " ", "$",
    "\\", "%", "~", "|", "\\tag", "\\operatorname", "*", "<img src=x onerror=window.ran=1>",
)  # fmt: skip


@pytest.fixture(scope="module")
def visit(browser, served) -> Iterator[Visit]:
    with visiting(browser, served.url) as visit:
        yield visit.open(f"#key={KEY}")


def test_a_formula_becomes(visit):
    shapes = visit.page.evaluate(SHAPES, list(SHAPED))

    assert dict(zip(SHAPED, shapes, strict=True)) == SHAPED


def test_formulas_are_told_from_prices_and_code(visit):
    found = {text: visit.page.evaluate(MARKUP, text)[0] for text in READ}

    assert found == READ


def test_what_is_not_closed_yet_is_text(visit):
    text = "so $$\\frac{a}{b}$$ and\n\n$$\n\\frac{a}{b}\n$$\n"
    counts = [visit.page.evaluate(MARKUP, text[:end])[0] for end in range(len(text) + 1)]

    assert [count for count, _ in itertools.groupby(counts)] == [0, 1, 2]
    count, shown = visit.page.evaluate(MARKUP, "$$\n\\frac{a}{b}")
    assert (count, shown) == (0, "\\frac{a}{b}")


def test_a_copy_has_the_source_of_formulas(visit):
    visit.page.evaluate(MARKUP, "Here $x_1$ and\n\n$$\n\\frac{a}{b}\n$$\n\nend.")
    whole = visit.page.evaluate(COPIED, "#probe")
    part = visit.page.evaluate(COPIED, "#probe mfrac mi")
    visit.page.evaluate(MARKUP, "No formula.")

    assert whole == [True, "Here $x_1$ and\n\n$$\\frac{a}{b}$$\n\nend."]
    assert part == [True, "$$\\frac{a}{b}$$"]
    assert visit.page.evaluate(COPIED, "#probe")[0] is False


def test_no_formula_takes_long_or_nests_deep(visit):
    found = {name: visit.page.evaluate(TOOK, source) for name, source in HOSTILE.items()}

    assert {name: ms for name, (ms, _) in found.items() if ms > 1000} == {}
    assert {name: depth for name, (_, depth) in found.items() if depth > 130} == {}


def test_no_text_between_dollars_breaks_the_page(visit):
    chance = random.Random(5)
    for _ in range(300):
        source = "".join(chance.choices(PIECES, k=chance.randint(1, 30)))
        visit.page.evaluate(MARKUP, f"$${source}$$")
        visit.page.evaluate(MARKUP, f"$$\n{source}\n$$")

    assert visit.page.evaluate("window.ran") is None
    assert visit.problems == []


def accessible(visit: Visit) -> list[dict[str, Any]]:
    session = visit.page.context.new_cdp_session(visit.page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    return [node for node in nodes if not node["ignored"]]


def test_a_screen_reader_meets_formulas_as_formulas(visit):
    visit.page.evaluate(MARKUP, "Here $\\frac{a}{b}$.")
    roles = [node.get("role", {}).get("value") for node in accessible(visit)]

    assert {"MathMLFraction", "MathMLIdentifier"} <= set(roles)
    assert not [node for node in accessible(visit) if "\\frac" in str(node.get("name"))]


def test_formulas_are_seen_and_stay_within_a_phone(browser, served):
    wide = " + ".join(f"x_{{{n}}}" for n in range(40))
    answer = f"Long ${wide}$ and $a^2$\n\n$$\n{wide}\n$$\n"
    said = {"role": "assistant", "model": "m", "reasoning": "", "content": answer, "error": None}
    with visiting(browser, served.url, viewport={"width": 390, "height": 800}) as visit:
        visit.open(f"#key={KEY}")
        keep(visit, [{"role": "user", "content": "?"}, {**said, "tokens": None, "finish": "stop"}])
        assert visit[".markdown math"].count() == 3
        for formula in visit[".markdown .math:not(.source)"].all():
            box = formula.bounding_box()
            assert box is not None
            assert box["width"] > 5
            assert box["x"] + box["width"] <= 390
            assert box["height"] > 10
        log = "document.querySelector('[data-log]')"
        assert visit.page.evaluate(f"{log}.scrollWidth <= {log}.clientWidth")
