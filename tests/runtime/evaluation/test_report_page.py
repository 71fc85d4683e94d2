"""The page: complete without scripts, one file, and whatever the data says stays text."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from runtime.evaluation.report.html_page import ITEMS_BYTES, page_of
from runtime.evaluation.report.interest import Gathering
from runtime.evaluation.report.word_diff import Piece, marked
from tests.support.evaluations import BASE, SMALL, TUNE, cases, evaluation, single
from tests.support.hostile_texts import MARK, PAYLOADS, poisoned

pytestmark = pytest.mark.lasting

VOID = {"meta", "link", "br", "input", "img", "hr"}


class Parsed(HTMLParser):
    """The elements and the texts of a page."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.open = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def text(self):
        return " ".join("".join(t for tag, t in self.texts if tag not in HIDDEN).split())

    def attributes(self, tag):
        return [found for name, found in self.elements if name == tag]


HIDDEN = ("script", "style")


def page(results, items):
    gathering = Gathering(results)
    for case in items:
        gathering.add(case)
    return page_of(results, gathering)


@pytest.fixture
def no_plots(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture(scope="module")
def whole():
    items = cases("labels", 60)
    return page(evaluation(items, "labels"), items)


def test_the_page_is_well_formed_and_has_all_parts_in_order(whole):
    parsed = Parsed(whole)
    names = [a["id"] for a in parsed.attributes("h2")]

    assert parsed.open == []
    assert names == ["scores", "differences", "plots", "groups", "cost", "items", "measured"]
    assert len(parsed.attributes("details")) == 60
    assert len(parsed.attributes("h1")) == 1


def test_ids_are_unique_and_references_have_a_target(whole):
    parsed = Parsed(whole)
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    targets = [a["href"][1:] for _, a in parsed.elements if a.get("href", "").startswith("#")]
    labels = [i for _, a in parsed.elements for i in a.get("aria-labelledby", "").split()]
    urls = re.findall(r'="url\(#([^)]+)\)', whole)

    assert len(ids) == len(set(ids))
    assert {*targets, *labels, *urls} <= set(ids)
    assert targets
    assert urls


def test_every_plot_has_a_title_and_a_description(whole):
    plots = [a for a in Parsed(whole).attributes("svg") if a.get("role") == "img"]

    assert len(plots) == 11
    assert all(len(a["aria-labelledby"].split()) == 2 for a in plots)
    assert whole.count("<desc ") == whole.count("<title ") == len(plots)


def test_the_policy_allows_this_script_and_style_alone(whole):
    parsed = Parsed(whole)
    (rules,) = [a["content"] for a in parsed.attributes("meta") if "http-equiv" in a]

    for tag in HIDDEN:
        (source,) = ["".join(t for name, t in parsed.texts if name == tag)]
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in rules
    assert rules.startswith("default-src 'none'; ")
    assert "unsafe" not in rules


def test_nothing_is_loaded_from_elsewhere(whole):
    links = {
        value
        for _, attributes in Parsed(whole).elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "srcset", "data", "style")
    }

    assert {link for link in links if not link.startswith("#")} == {"data:,"}
    assert "@import" not in whole


@pytest.mark.parametrize("payload", PAYLOADS)
def test_texts_never_become_elements(no_plots, payload):
    items = cases("labels", 6)
    results = evaluation(items, "labels")
    clean = Parsed(page(results, items))
    found = Parsed(page(poisoned(results, payload), [poisoned(c, payload) for c in items]))
    marks = ("ins", "del")

    assert [t for t, _ in found.elements if t not in marks] == [
        t for t, _ in clean.elements if t not in marks
    ]
    assert not [a for _, a in found.elements for a in a if a.startswith("on")]
    if payload.isascii() and payload.isprintable():
        assert " ".join(payload.split()) in found.text


def test_control_characters_show_as_a_sign(no_plots):
    items = cases(count=2)
    odd = replace(items[0], question="a\x00b\x1bc\u202ed\ud800e\r\nf\tg")
    made = page(evaluation(items), [odd])

    assert "a\ufffdb\ufffdc\ufffdd\ufffde\nf\tg</div>" in made
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", made
    )


def test_the_headline_says_who_is_better_and_by_how_much(no_plots):
    items = cases(count=30)
    results = evaluation(items)
    found = results.differences[TUNE]["exact_match"]
    text = Parsed(page(results, items)).text

    assert f"{TUNE} is better than {BASE} in exact match" in text
    assert f"+{found.value:.1f} points" in text
    assert "n = 30" in text


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        ("worse", f"{TUNE} is worse than {BASE} in exact match"),
        ("no difference shown", f"No difference between {TUNE} and {BASE} is shown"),
        ("differs", f"{TUNE} differs from {BASE}"),
    ],
)
def test_the_headline_follows_the_verdict(no_plots, verdict, expected):
    items = cases(count=5)
    results = evaluation(items)
    one = replace(results.differences[TUNE]["exact_match"], verdict=verdict)
    changed = replace(results, differences={TUNE: {"exact_match": one}})

    assert expected in Parsed(page(changed, items)).text


def test_one_model_has_no_differences(no_plots):
    items = [replace(c, verdicts={}) for c in cases(count=5)]
    parsed = Parsed(page(single(items), items))

    assert f"{TUNE} scores" in parsed.text
    assert "differences" not in [a["id"] for a in parsed.attributes("h2")]


def test_nothing_measured_is_still_a_page(no_plots):
    empty = replace(
        single(cases(count=2)), models=(), scores={}, groups={}, metrics=(), deciding=""
    )

    assert "No model was measured." in Parsed(page(empty, [])).text


def test_without_matplotlib_the_page_says_so(no_plots):
    items = cases(count=3)
    made = page(evaluation(items), items)

    assert "pip install &#39;decant-llm[eval]&#39;" in made
    assert 'role="img"' not in made


def test_an_interrupted_evaluation_says_so(no_plots):
    items = cases(count=3)

    assert "interrupted" in page(replace(evaluation(items), is_complete=False), items)
    assert "interrupted" not in page(evaluation(items), items)


def test_a_large_evaluation_is_a_page_below_5_mb(no_plots):
    template = cases(count=1)[0]
    results = evaluation([template])
    gathering = Gathering(results)
    for number in range(2000):
        long = f"<{number}> " + "&word " * 2000
        answers = dict.fromkeys((BASE, TUNE, SMALL), long)
        gathering.add(replace(template, id=str(number), question=long, answers=answers))
    made = page_of(results, gathering)
    listed = made.count("<details ")

    assert len(made.encode()) < 5_000_000
    assert f"The {listed} items of most interest are listed; all 2000 are in items.jsonl." in made
    assert "more characters)" in made
    assert 50 < listed < 500
    assert len(made.encode()) > ITEMS_BYTES * 0.9


def test_five_hundred_items_are_listed_where_they_fit(no_plots):
    items = cases(count=700)

    assert page(evaluation(items), items).count("<details ") == 500


def test_many_groups_are_cut_and_counted(no_plots):
    items = cases(count=2)
    results = evaluation(items)
    scores = results.groups["language"][items[0].columns["language"]]
    many = replace(results, groups={"user": {f"u{n}": scores for n in range(100)}})
    made = page(many, items)

    assert made.count('<th scope="row"><bdi>u') == 30
    assert "70 more groups are in report.json." in made


def test_word_differences_are_marked_both_ways():
    assert marked("the red fox runs", "the blue fox runs away") == [
        Piece("same", "the "),
        Piece("removed", "red "),
        Piece("added", "blue "),
        Piece("same", "fox runs "),
        Piece("added", "away"),
    ]


def test_scripts_without_spaces_are_compared_by_character():
    assert marked("我喜欢猫", "我喜欢狗") == [
        Piece("same", "我喜欢"), Piece("removed", "猫"), Piece("added", "狗"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after"),
    [("a b c", "x y z"), ("", "new text"), ("same", "same"), ("the " * 5000, "the the " * 5000)],
)
def test_what_marks_would_confuse_is_unmarked(before, after):
    assert marked(before, after) == [Piece("same", after)]


def test_marks_end_with_the_word(no_plots):
    items = cases(count=1)
    answers = {BASE: "the red fox runs", TUNE: "the blue fox runs"}
    made = page(evaluation(items), [replace(items[0], answers=answers)])

    assert "the <del>red</del> <ins>blue</ins> fox runs</div>" in made


def test_marked_pieces_are_the_model_s_answer():
    for case in cases(count=50):
        pieces = marked(case.answers[BASE], case.answers[TUNE])
        assert "".join(p.text for p in pieces if p.kind != "removed") == case.answers[TUNE]


def test_the_payloads_are_dangerous_unescaped():
    parsed = Parsed.__new__(Parsed)
    HTMLParser.__init__(parsed, convert_charrefs=True)
    parsed.elements, parsed.texts, parsed.open = [], [], []
    parsed.feed(PAYLOADS[0])

    assert parsed.elements == [("script", {})]
    assert sum(MARK in payload for payload in PAYLOADS) >= 30
