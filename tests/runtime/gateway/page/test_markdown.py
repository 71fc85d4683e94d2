"""The page's own markdown: what it makes of texts, and what no text can make of the page."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from tests.runtime.gateway.page.conftest import GROWN, KEY, Visit, visiting

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

RENDER = """async (text) => {
  const { rendered } = await import('/page/markdown.js');
  const root = document.createElement('div');
  root.id = 'probe';
  root.append(...rendered(text));
  document.getElementById('probe')?.remove();
  document.querySelector('[data-log]').append(root);
  root.querySelectorAll('button').forEach((button) => button.remove());
  return root.innerHTML;
}"""
TOOK = """async (text) => {
  const { rendered } = await import('/page/markdown.js');
  const began = performance.now();
  document.createElement('div').append(...rendered(text));
  return performance.now() - began;
}"""

Rendered = Callable[[str], str]

LINK = '<a href="{0}" title="{0}" target="_blank" rel="noopener noreferrer nofollow">{1}</a>'
BOX = '<span class="box" role="img" aria-label="{}">{}</span>'
WRITTEN = {
    "a *b* **c** ***d*** ~~e~~ `f*` _g_": "<p>a <em>b</em> <strong>c</strong> "
    "<em><strong>d</strong></em> <del>e</del> <code>f*</code> <em>g</em></p>",
    "snake_case_name 2 * 3 * 4 **open": "<p>snake_case_name 2 * 3 * 4 **open</p>",
    r"\*a\* &lt;b&gt; &amp;amp; `` ` ``": "<p>*a* &lt;b&gt; &amp;amp; <code>`</code></p>",
    "one\ntwo\\\nthree\n\nfour": "<p>one<br>two<br>three</p><p>four</p>",
    "# A #\n###### B\n#c": "<h3>A</h3><h6>B</h6><p>#c</p>",
    "---\n***": "<hr><hr>",
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "- a\n- b\n  - c\n\ntext": "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><p>text</p>",
    "3. a\n4. b\n   - c": '<ol start="3"><li>a</li><li>b<ul><li>c</li></ul></li></ol>',
    "1. a\n  - b": '<ol start="1"><li>a<ul><li>b</li></ul></li></ol>',
    "- a\n\n- b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "* a\ngoes on": "<ul><li>a<br>goes on</li></ul>",
    "p\n```py\n<i>\n# x\n```\nq": '<p>p</p><figure class="code"><figcaption><span>py</span>'
    '</figcaption><pre tabindex="0"><code>&lt;i&gt;\n<span class="code-comment"># x</span>'
    "</code></pre></figure><p>q</p>",
    "~~~\nopen": '<figure class="code"><figcaption><span>code</span></figcaption>'
    '<pre tabindex="0"><code>open</code></pre></figure>',
    "|a|b|\n|:-:|--:|\n|*c*|\\|": '<div class="table" tabindex="0"><table><thead><tr>'
    '<th class="middle">a</th><th class="right">b</th></tr></thead><tbody><tr>'
    '<td class="middle"><em>c</em></td><td class="right">|</td></tr></tbody></table></div>',
    "a | b\nc": "<p>a | b<br>c</p>",
    "[x *y*](https://a.example/p_(q)_r 'title')": "<p>"
    + LINK.format("https://a.example/p_(q)_r", "x <em>y</em>") + "</p>",
    "see https://a.example/b_c. <mailto:a@b.example>": "<p>see "
    + LINK.format("https://a.example/b_c", "https://a.example/b_c") + ". "
    + LINK.format("mailto:a@b.example", "mailto:a@b.example") + "</p>",
    "[https://a.example/](https://b.example/)": "<p>"
    + LINK.format("https://b.example/", "https://a.example/") + "</p>",
    "![cat](https://a.example/c.png)": '<p><span class="picture">[picture: cat]<span> '
    + LINK.format("https://a.example/c.png", "address") + "</span></span></p>",
    "[a](b) [c]": "<p><span>a (b)</span> [c]</p>",
    "- [x] a\n- [ ] *b*\n- [y] c": f'<ul><li class="task">{BOX.format("done", "☑")} a</li>'
    f'<li class="task">{BOX.format("not done", "☐")} <em>b</em></li><li>[y] c</li></ul>',
    "```py\nif f(1): # <b>\n  'a\n```": '<figure class="code"><figcaption><span>py</span>'
    '</figcaption><pre tabindex="0"><code><span class="code-keyword">if</span> <span '
    'class="code-call">f</span>(<span class="code-number">1</span>): <span class="code-comment">'
    "# &lt;b&gt;</span>\n  <span class=\"code-string\">'a</span></code></pre></figure>",
    "$5 or $6, $A$B, *b* and US$": "<p>$5 or $6, $A$B, <em>b</em> and US$</p>",
    "$$open\n- a\n\nb": '<div class="math source" tabindex="0">open\n- a</div><p>b</p>',
}  # fmt: skip
HOSTILE = (
    "<img src=x onerror=window.ran=1>",
    "<script>window.ran=1</script>",
    "<svg onload=window.ran=1><a xlink:href='javascript:window.ran=1'>x</a></svg>",
    "<iframe srcdoc='<script>parent.ran=1</script>'></iframe><style>*{display:none}</style>",
    "[x](javascript:window.ran=1)",
    "[x](JaVaScRiPt:window.ran=1) [y](&#106;avascript:window.ran=1) [z](<java\tscript:ran=1>)",
    "[x](data:text/html,<script>window.ran=1</script>) <javascript:window.ran=1>",
    "[x](vbscript:x) [y](file:///etc/passwd) [z](//evil.example) [w](\x01javascript:ran=1)",
    '[x](https://a.example/"onmouseover="window.ran=1)',
    "![x](http://127.0.0.1:9/beacon.png) ![y](data:image/svg+xml,<svg/>)",
    "[![x](http://127.0.0.1:9/beacon.png)](javascript:window.ran=1)",
    '```"><img src=x onerror=window.ran=1>\n</code></pre><script>window.ran=1</script>\n```',
    "|<img src=x onerror=window.ran=1>|b|\n|-|-|\n|[x](javascript:window.ran=1)|c|",
    "# <base href=//evil.example>\n> <form action=//evil.example><button>x</button></form>",
    "```html\n<img src=x onerror=window.ran=1><script>window.ran=1</script>\n```",
    "$<img src=x onerror=window.ran=1>$ $$<script>window.ran=1</script>$$ \\(<b>\\)",
    "$$\n<img src=x onerror=window.ran=1>\n$$\n- [x] <img src=x onerror=window.ran=1>",
    "&lt;script&gt;window.ran=1&lt;/script&gt; &#60;img src=x onerror=window.ran=1&#62;",
)
ALLOWED = {
    "P", "BR", "H3", "H4", "H5", "H6", "HR", "BLOCKQUOTE", "UL", "OL", "LI", "FIGURE", "DIV",
    "FIGCAPTION", "SPAN", "PRE", "CODE", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "EM",
    "STRONG", "DEL", "A",
}  # fmt: skip
ATTRIBUTES = {"href", "title", "target", "rel", "class", "start", "tabindex", "role", "aria-label"}
FORMULA = {"math", "semantics", "annotation", "mrow", "mi", "mn", "mo"}
OF_FORMULAS = {
    "display", "displaystyle", "encoding", "form", "lspace", "mathvariant", "rspace", "stretchy",
}  # fmt: skip
LONG = 30_000
ENDLESS = {
    "stars": "*a " * LONG, "runs": "**" * LONG, "both": "*a _b " * LONG, "open": "[" * LONG,
    "pairs": "[]" * LONG, "nested": "[a](" * LONG, "pictures": "![" * LONG + "](x)" * LONG,
    "ticks": "".join("`" * (n % 300) + " " for n in range(800)), "quotes": ">" * LONG,
    "quoted lines": "> " * 50 + "\n> a" * 9000, "items": "- " * LONG, "dashes": "-" * LONG,
    "indented": "\n".join(" " * n + "- a" for n in range(600)), "bars": "|a" * LONG,
    "delimiters": "|a|\n" + "|-" * LONG + "x", "spaces": "# " + " " * LONG + "x",
    "hashes": "# a" + " #" * LONG + "x", "addresses": "https://a" * 20_000,
    "emphasis in emphasis": "*a **b " * 20_000 + "c** d* " * 20_000, "angles": "<http://" * 9000,
    "lines": "a\n" * LONG, "blank": "- a\n" + "\n" * LONG + "b",
    "parentheses": "https://a" + ")" * LONG, "spans": "`a` " * 60_000,
    "runs that do not fit": " **a" * 60_000 + "b*" * 60_000,
}  # fmt: skip
MILLION = 1_000_000
LARGE = {
    "spaces in a line of delimiters": "a|b\n" + " " * MILLION + "x-|",
    "columns": "|a" * (MILLION // 4) + "|\n" + "|-" * (MILLION // 4),
    "short rows": "|a" * 100 + "|\n" + "|-" * 100 + "|\n" + "|x|\n" * (MILLION // 4),
    "spans of spaces": "` a`" * (MILLION // 4),
    "a span of words": "` " + " a" * (MILLION // 2) + "`",
    "rules that are none": "* * x\n" * (MILLION // 6),
    "items": "- a\n" * (MILLION // 4),
    "lines below deep items": "- " * 11 + "a\n" + "b\n" * (MILLION // 2),
    "quotes in items": "- > - > - > - > - > - > a\n" * (MILLION // 26),
    "fences": "```\n" * (MILLION // 4), "fences in items": "- ```\n" * (MILLION // 6),
    "emphasis": "*_" * (MILLION // 2), "closed emphasis": "*a*" * (MILLION // 3),
    "brackets": "[" * MILLION, "nested links": "[" * (MILLION // 4) + "](b)" * (MILLION // 5),
    "pictures": "![a](b)" * (MILLION // 7), "quotes and lines": "> a\nb\n" * (MILLION // 6),
    "tables": "|a|\n|-|\n" * (MILLION // 8), "rows": "|a|b|\n|-|-|\n" + "|a|b|\n" * (MILLION // 6),
    "backticks": "\n".join("`" * (n % 1000) for n in range(MILLION // 500)),
    "formulas": "$a" * (MILLION // 2), "closed formulas": "$x_1+\\frac{a}{b}$ " * (MILLION // 18),
    "letters of formulas": ("$" + "x" * 3900 + "$ ") * (MILLION // 3903),
    "blocks of formulas": "$$\n\\sum_{i}^n \\sqrt{i}\n$$\n\n" * (MILLION // 28),
    "ends of formulas": "\\(" * (MILLION // 4) + "\\)" * (MILLION // 4),
    "prices": " $1 $$" * (MILLION // 6), "lines of formulas": "$$\n" * (MILLION // 3),
    "open strings": "```js\n" + '"a ' * (MILLION // 3),
    "comments": "```c\n" + "/*" * (MILLION // 2),
    "keys": "```json\n" + '"\\a' * (MILLION // 3), "words": "```py\n" + "a(" * (MILLION // 2),
    "one word": "```yaml\n" + "a" * MILLION, "a string": '```json\n"' + "a" * MILLION,
    "tags": "```html\n" + "<a-" * (MILLION // 3), "digits": "```py\n" + "1_" * (MILLION // 2),
    "addresses": "http://a) " * (MILLION // 10), "backslashes": "\\*" * (MILLION // 2),
}  # fmt: skip
"""A million characters each."""
PARTS = (
    "# Head", "text *it* **bo", "ld** `co`", "- item", "  - nested", "1. one", "2. two", "> quote",
    "```py", "code < 1", "```", "|a|b|", "|-|-|", "|1|2|", "---", "", "", "[x](https://a.example)",
    "    deep", "~~no~~", "***", "#", "-", "1.", "a | b", "- [x] done", "$$", "a $b$ c", "\\[",
    "\\]", "```js", 'const a = "b', "/* open", "*/ f(1)", "$$ x $$", "```json", '{"key": 1}',
)  # fmt: skip


@pytest.fixture(scope="module")
def visit(browser, served) -> Iterator[Visit]:
    with visiting(browser, served.url) as visit:
        yield visit.open(f"#key={KEY}")


@pytest.mark.parametrize(("text", "markup"), WRITTEN.items())
def test_markdown_becomes(visit, text, markup):
    assert visit.page.evaluate(RENDER, text) == markup


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_a_text_is_run_fetched_or_leads_astray(visit, text):
    before = len(visit.requests)
    visit.page.evaluate(RENDER, text)
    probe = visit["#probe"]
    made = probe.evaluate(
        "root => [...root.querySelectorAll('*')].map(e => [e.tagName, e.getAttributeNames()])"
    )
    hrefs = probe.evaluate("root => [...root.querySelectorAll('a')].map(a => a.protocol)")
    for link in probe.locator("a").all():
        link.hover()
    for place in probe.locator("p, code, td").all():
        place.dispatch_event("click")

    assert {tag for tag, _ in made} <= ALLOWED | FORMULA
    assert {name for _, names in made for name in names} <= ATTRIBUTES | OF_FORMULAS
    assert set(hrefs) <= {"http:", "https:", "mailto:"}
    assert visit.page.evaluate("window.ran") is None
    assert visit.requests[before:] == []
    assert visit.problems == []


def test_no_text_takes_long(visit):
    took = {name: visit.page.evaluate(TOOK, text) for name, text in ENDLESS.items()}

    assert {name: ms for name, ms in took.items() if ms > 10_000} == {}


@pytest.mark.alone
def test_a_million_characters_take_a_second_at_most(visit):
    """On processors that others do not need meanwhile: of three tries one is enough."""
    took = {
        name: min(visit.page.evaluate(TOOK, text) for _ in range(3)) for name, text in LARGE.items()
    }

    assert {name: ms for name, ms in took.items() if ms > 1_000} == {}


def test_what_is_beyond_a_hundred_thousand_characters_is_shown_as_it_is_written(visit):
    lines = "- *a*\n" * 30_000
    markup = visit.page.evaluate(RENDER, lines)

    assert markup.startswith("<ul><li><em>a</em></li>")
    assert markup.count("<em>") == 100_000 // 6
    assert markup.endswith('<p class="rest">' + "- *a*\n" * (30_000 - 100_000 // 6) + "</p>")
    cuts = [50_000, 99_999, 100_001, 150_000, len(lines)]
    assert visit.page.evaluate(GROWN, [lines, cuts]) is None


def test_a_table_has_few_columns_and_a_line_of_more_is_text(visit):
    def table(columns: int) -> str:
        return "|a" * columns + "|\n" + "|-" * columns + "|"

    assert visit.page.evaluate(RENDER, table(100)).count("<th>") == 100
    assert visit.page.evaluate(RENDER, table(101)).startswith("<p>|a|a")
    assert visit.page.evaluate(RENDER, table(2) + "\n|x|\n|y|z|w|").count("<td>") == 4


def test_what_is_written_while_it_grows_is_what_the_whole_text_gives(visit):
    chance = random.Random(11)
    for _ in range(60):
        text = "\n".join(chance.choices(PARTS, k=chance.randint(2, 14)))
        cuts = sorted(chance.choices(range(len(text) + 1), k=25))
        assert visit.page.evaluate(GROWN, [text, cuts]) is None
    long = "\n\n".join(chance.choices(PARTS, k=300))
    assert visit.page.evaluate(GROWN, [long, list(range(0, len(long), 7))]) is None
    everything = "\n".join(PARTS)
    assert visit.page.evaluate(GROWN, [everything, list(range(len(everything)))]) is None


def test_long_code_is_the_same_in_blocks_of_lines_and_copied_whole(visit):
    code = 'a = f("b", 1)  # c\n/* open\n' * 90 + "\n\nlast"
    for language in ("js", "py", "unknown"):
        text = f"text\n\n```{language}\n{code}\n```\nmore"
        markup = visit.page.evaluate(RENDER, text)
        assert visit["#probe pre"].text_content() == code
        assert markup.count('class="lines') == (0 if language == "js" else 182 // 50)
        cuts = [*range(0, len(text), 97), *range(1000, 1100)]
        assert visit.page.evaluate(GROWN, [text, sorted(cuts)]) is None
    copied = visit.page.evaluate(
        """() => { getSelection().selectAllChildren(document.querySelector('#probe pre'));
        return getSelection().toString(); }"""
    )
    assert copied == code


def test_what_stands_is_kept_in_place_while_more_is_written(visit):
    kept = visit.page.evaluate(
        """async () => {
          const { LiveMarkdown } = await import('/page/live_markdown.js');
          const root = document.createElement('div');
          document.querySelector('[data-log]').append(root);
          const live = new LiveMarkdown(root);
          live.write('first\\n\\n- a\\n- b\\n\\n```\\n' + 'x'.repeat(3000));
          const [first, list, code] = root.children;
          const pre = code.querySelector('pre');
          pre.scrollLeft = 40;
          getSelection().selectAllChildren(pre);
          live.write(live.settled + '```\\n' + 'x'.repeat(3000) + 'y\\nmore');
          const same = [first, list, code].every((node, place) => root.children[place] === node);
          const found = [same, pre.scrollLeft, getSelection().toString().length > 2999];
          live.write('another');
          found.push(root.textContent);
          root.remove();
          return found;
        }"""
    )

    assert kept == [True, 40, True, "another"]
