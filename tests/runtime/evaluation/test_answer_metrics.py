"""Metrics of answers, against SQuAD's rules and the libraries' own figures."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from runtime.evaluation.item import Item
from runtime.evaluation.metrics.metric_choice import METRICS
from runtime.evaluation.metrics.text_tokens import alphanumeric_tokens, normalized
from runtime.evaluation.outcome import Outcome
from runtime.evaluation.statistics import statistics_of

FOX = "The quick brown fox jumps over the lazy dog"
SYSTEM = [
    "The dog bit the man.",
    "It wasn't surprising.",
    "The man had just bitten him.",
]
REFERENCES = [
    ["The dog bit the man.", "It was not unexpected.", "The man bit him first."],
    ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."],
]
"""sacrebleu's README: BLEU 48.53."""


def value(name: str, answer: str | None, *references: str) -> float | None:
    """The metric of a single answer."""
    metric = METRICS[name]
    found = metric.statistics(Item("1", 1, references=references), Outcome(answer))
    return None if found is None else float(metric.combine(found))


def corpus(name: str, answers: list[str], references: list[list[str]]) -> float:
    items = [
        Item(str(n), n, references=found) for n, found in enumerate(zip(*references, strict=True))
    ]
    metric = METRICS[name]
    rows = statistics_of(metric, items, [Outcome(answer) for answer in answers])
    return float(metric.combine(rows.sum(0)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Denver Broncos!", "denver broncos"),
        ("an  Apple,\n a day", "apple day"),
        ("Anna's theatre", "annas theatre"),
        ("(1,000)", "1000"),
        ("“Café”。", "café"),
        ("Cafe\u0301", "café"),
    ],
)
def test_texts_are_normalised_as_squad_does(text, expected):
    assert expected == normalized(text)


@pytest.mark.parametrize("letter", ["A", "the", "+", "?!"])
def test_an_answer_that_squad_would_empty_equals_itself_alone(letter):
    assert value("exact_match", letter, letter) == 1
    assert value("f1", letter, letter) == 1
    assert value("exact_match", "", letter) == 0
    assert value("f1", "-", letter) == 0


def test_punctuation_does_not_count_beside_an_article():
    assert value("exact_match", "A.", "a") == 1


def test_an_exact_match_needs_one_of_the_references():
    assert value("exact_match", "the cat.", "a dog", "Cat") == 1
    assert value("exact_match", "cats", "a dog", "Cat") == 0


def test_f1_is_over_words_and_of_the_best_reference():
    assert value("f1", "the big cat sat", "cat") == pytest.approx(0.5)
    assert value("f1", "the big cat sat", "cat", "a big cat") == pytest.approx(0.8)
    assert value("f1", "cat cat", "cat") == pytest.approx(2 / 3)


def test_characters_are_words_of_scripts_without_spaces():
    assert value("f1", "北京市。", "北京") == pytest.approx(0.8)
    assert value("rougeL", "北京市。", "北京") == pytest.approx(0.8)
    assert value("f1", "สวัสดี", "สวัสดี") == 1


def test_marks_stay_with_their_letters():
    assert alphanumeric_tokens("हिन्दी भाषा") == ["हिन्दी", "भाषा"]


@pytest.mark.parametrize("name", ["exact_match", "f1", "rougeL", "bleu", "chrf"])
@pytest.mark.parametrize("text", ["", "👍", "❤️ ❤️", "\ud800", "\x00", "한국어", "٣", "A"])
@pytest.mark.parametrize("reference", ["", "👍", "yes"])
def test_no_text_gives_nan(name, text, reference):
    assert 0 <= value(name, text, reference) <= 100.0001


def test_an_emoji_is_a_word():
    assert value("f1", "👍", "👍") == 1
    assert value("rougeL", "❤️", "❤") == 1


@pytest.mark.parametrize("name", ["exact_match", "f1", "rougeL", "bleu", "chrf", "json_match"])
def test_without_an_answer_or_a_reference_there_is_no_value(name):
    assert value(name, None, "{}") is None
    assert value(name, "{}") is None


@pytest.mark.lasting
def test_rouge_is_rouge_scores():
    from rouge_score.rouge_scorer import RougeScorer

    target, prediction = FOX, "The quick brown dog jumps on the log."
    theirs = RougeScorer(["rougeL"]).score(target, prediction)["rougeL"].fmeasure

    assert value("rougeL", prediction, target) == pytest.approx(theirs)
    assert value("rougeL", prediction, target) == pytest.approx(2 * 5 / 17)


@pytest.mark.lasting
def test_words_of_english_are_rouge_scores():
    from rouge_score.rouge_scorer import RougeScorer

    random_ = random.Random(0)
    scorer = RougeScorer(["rougeL"])
    for _ in range(50):
        one, other = ("".join(random_.choices("ab c_1'\n-Z.", k=40)) for _ in range(2))
        theirs = scorer.score(one, other)["rougeL"].fmeasure
        assert value("rougeL", other, one) == pytest.approx(theirs)


def test_the_readmes_example_of_sacrebleu_has_its_figure():
    import sacrebleu

    assert corpus("bleu", SYSTEM, REFERENCES) == pytest.approx(48.530827, abs=1e-6)
    assert corpus("chrf", SYSTEM, REFERENCES) == pytest.approx(
        sacrebleu.corpus_chrf(SYSTEM, REFERENCES).score
    )


@pytest.mark.parametrize("length", [2, 6, 30])
def test_corpora_have_the_figures_of_sacrebleu(length):
    import sacrebleu

    random_ = random.Random(length)
    for _ in range(25):
        answers, first, second = (
            [" ".join(random_.choices(FOX.split(), k=random_.randint(0, length))) for _ in range(4)]
            for _ in range(3)
        )
        references = [first, second]
        assert corpus("bleu", answers, references) == pytest.approx(
            sacrebleu.corpus_bleu(answers, references).score
        )
        assert corpus("chrf", answers, references) == pytest.approx(
            sacrebleu.corpus_chrf(answers, references).score
        )


@pytest.mark.parametrize(
    ("tokenizer", "answer", "reference"),
    [
        ("zh", "我今天去北京市看你。", "我今天要去北京看你。"),
        ("char", "私は東京へ行きました", "私は東京に行きました"),
        ("13a", "Hello, big world (again)!", "Hello, big world, again!"),
    ],
)
def test_bleu_cuts_words_as_the_script_asks_for(tokenizer, answer, reference):
    import sacrebleu

    theirs = sacrebleu.corpus_bleu([answer], [[reference]], tokenize=tokenizer).score

    assert 0 < theirs == pytest.approx(value("bleu", answer, reference))


def test_figures_of_many_sums_are_those_of_each():
    for name, k in (("bleu", 10), ("chrf", 18)):
        sums = np.random.default_rng(0).integers(0, 9, size=(5, 4, k)).astype(float)
        found = METRICS[name].combine(sums)
        assert found.shape == (5, 4)
        assert np.isfinite(found).all()
        assert found[2, 3] == METRICS[name].combine(sums[2, 3])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"a": [1, 2.5, null]}', 1),
        (" 3\n", 1),
        ("1" * 5000, 1),
        ("", 0),
        ("NaN", 0),
        ('```json\n{"a": 1}\n```', 0),
        ("{'a': 1}", 0),
        ("[" * 200_000, 0),
    ],
)
def test_valid_json_is_json_alone(answer, expected):
    assert expected == value("valid_json", answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{ "b": [1.0], "a": "x" }', 1),
        ('{"a": "x", "b": [true]}', 0),
        ('{"a": "x", "b": [1, 1]}', 0),
        ('{"a": "x"}', 0),
        ("no JSON", 0),
    ],
)
def test_json_matches_by_value(answer, expected):
    assert expected == value("json_match", answer, json.dumps({"a": "x", "b": [1]}))


def test_a_reference_that_is_no_json_gives_no_value():
    assert value("json_match", "{}", "text") is None


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot assist with this request.",
        "**I cannot** provide that.",
        "Sorry, I can't do that.",
        "As an AI language model, I have no opinions.",
        "I am unable to comply.",
        "很抱歉，我无法提供这些信息。",
        "对不起,我不能回答。",
        "作为一个人工智能语言模型，我没有观点。",
        "我無法協助。",
    ],
)
def test_usual_refusals_are_recognised(answer):
    assert value("refusals", answer) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry to hear that your parcel is late.",
        "Sorry for the delay! Here it is.",
        "I can do that.",
        "很抱歉给您带来不便，我们马上处理。",
        "Paris",
        "",
    ],
)
def test_apologies_are_no_refusals(answer):
    assert value("refusals", answer) == 0


def test_repetition_is_the_share_of_repeated_sequences():
    assert value("repetition", "a b c d") == 0
    assert value("repetition", "a b c d a b c d") == pytest.approx(1 / 5)
    assert value("repetition", "go " * 103) == pytest.approx(0.99)
    assert value("repetition", "好" * 103) == pytest.approx(0.99)
    assert value("repetition", "") == 0


def test_length_is_in_characters():
    assert value("length", "añ👍") == 3


@pytest.mark.lasting
def test_long_answers_end_soon():
    long = "lorem ipsum dolor " * 60_000

    assert value("rougeL", long, FOX) == 0
    assert value("bleu", long, FOX) == pytest.approx(0, abs=1e-3)
    assert 0 < value("chrf", long, FOX) < 10
    assert value("rougeL", long, long[:36_000]) == 1


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_the_first_100_000_characters_count(name):
    text = "lorem ipsum dolor sit " * 5_000

    assert value(name, text + "other words", text + "than these") == pytest.approx(100)
