"""Evaluations of the usual models: a base, and its fine-tune at 8 bits and at 4 bits."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

from runtime.evaluation.evaluation import (
    CalibrationBin,
    Case,
    Confusion,
    DataFacts,
    Evaluation,
    JudgeResult,
    MetricFacts,
    ModelFacts,
)
from runtime.evaluation.metric import Difference, Interval

BASE, TUNE, SMALL = "qwen2.5-1.5b Q8_0", "support-tune Q8_0", "support-tune Q4_K_M"
MODELS = (
    ModelFacts(BASE, "models/qwen2.5-1.5b-instruct-q8_0.gguf", "Q8_0", 1_890_000_000, "3f" * 32,
               2_310_000_000, 41.2, 0.18, 212.0, 0, {}, 9),
    ModelFacts(TUNE, "out/support-tune-q8_0.gguf", "Q8_0", 1_894_000_000, "a1" * 32,
               2_312_000_000, 40.8, 0.19, 180.5, 0, {}, 1),
    ModelFacts(SMALL, "out/support-tune-q4_k_m.gguf", "Q4_K_M", 1_120_000_000, "0c" * 32,
               1_540_000_000, 62.5, 0.15, 121.4, 12,
               {"the prompt has 4,310 tokens, and the context 4,096": 2}, 2),
)  # fmt: skip
ACCURACY = MetricFacts("exact_match", "exact match", "%", True)
LOSS = MetricFacts("loss", "loss", "nats", False)
CHRF = MetricFacts("chrf", "chrF", "", True)
LENGTH = MetricFacts("length", "length", "characters", None)
LABELS = ("billing", "delivery", "returns", "technical problem", "other")
OPENERS = (
    "Thank you for writing to us.", "I am sorry about the trouble.", "Good news:",
    "We have looked at your order.", "You can do that in your account.",
)  # fmt: skip
FACTS = (
    "The parcel left our store on Monday and arrives within three days.",
    "You can send the shoes back within 30 days, and the label is in the box.",
    "Your card was charged once; the second amount is only reserved and disappears by itself.",
    "Open Settings, choose Account, and then Reset password.",
    "Restart the router, wait for two minutes, and try again.",
)


def interval(values: list[float]) -> Interval:
    """The mean with a normal interval; a report shows any kind of interval alike."""
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) ** 2)
    ends = (mean - 1.96 * spread, mean + 1.96 * spread)
    return Interval(mean, *ends, len(values))


def cases(task: str = "answers", count: int = 200, seed: int = 7) -> list[Case]:
    """Items with answers of all three models."""
    random = Random(seed)
    return [case(task, number, random) for number in range(1, count + 1)]


def case(task: str, number: int, random: Random) -> Case:
    kind = random.randrange(len(LABELS))
    right = {BASE: 0.55, TUNE: 0.84, SMALL: 0.81}
    loss = abs(random.gauss(1.9, 0.7)) + 0.05
    answers, values = {}, {}
    reference = LABELS[kind] if task == "labels" else f"{OPENERS[kind]} {FACTS[kind]}"
    for name in (BASE, TUNE, SMALL):
        is_right = random.random() < right[name]
        if task == "labels":
            answer = LABELS[kind] if is_right else random.choice(LABELS)
        else:
            answer = reference if is_right else altered(reference, random)
            if name == BASE and random.random() < 0.5:
                answer += " Please let me know if there is anything else that I can help with!"
        answers[name] = answer
        gain = 0.0 if name == BASE else random.gauss(0.7, 0.35)
        values[name] = {
            "exact_match": 100.0 * (answer == reference),
            "loss": max(0.02, loss - gain),
            "length": float(len(answer)),
        }
    theirs = values[BASE]["exact_match"]
    verdicts = {
        name: "tie" if ours == theirs else "win" if ours > theirs else "loss"
        for name in (TUNE, SMALL)
        for ours in (values[name]["exact_match"],)
    }
    if number in (17, 90):
        answers[SMALL] = "the prompt has 4,310 tokens, and the context 4,096"
        values[SMALL], verdicts = {}, {TUNE: verdicts[TUNE]}
    question = f"Where is order {random.randrange(10_000, 99_999)}? I asked about {LABELS[kind]}."
    return Case(f"ticket-{number:04d}", number, question, reference, answers, values, verdicts,
                {"language": random.choice(("de", "en", "fr")), "topic": LABELS[kind]})  # fmt: skip


def altered(text: str, random: Random) -> str:
    words = text.split()
    for _ in range(random.randrange(1, 4)):
        words[random.randrange(len(words))] = random.choice(("soon", "perhaps", "our", "not"))
    return " ".join(words)


def scores(items: list[Case]) -> dict[str, dict[str, Interval]]:
    """The means of the items' values; chrF is invented."""
    found: dict[str, dict[str, Interval]] = {}
    for name, chrf in ((BASE, 0.48), (TUNE, 0.71), (SMALL, 0.69)):
        per = {
            metric: [c.values[name][metric] for c in items if metric in c.values[name]]
            for metric in ("exact_match", "loss", "length")
        }
        if not per["loss"]:
            continue
        found[name] = {
            "exact_match": interval(per["exact_match"]),
            "loss": interval(per["loss"]),
            "chrf": Interval(chrf, chrf - 0.03, chrf + 0.03, len(per["loss"])),
            "length": interval(per["length"]),
        }
    return found


def evaluation(items: list[Case], task: str = "answers") -> Evaluation:
    """The results of the items, with everything that a report can show."""
    labels = LABELS if task == "labels" else ()
    return Evaluation(
        id="2026-11-27-support",
        began="2026-11-27T08:15:00+01:00",
        data=DataFacts("tickets.jsonl", "labels" if labels else "answers", "prompt, completion",
                       len(items) + 3, len(items), 3, labels,
                       ("The adapter was not trained on this file.",)),
        models=MODELS,
        metrics=(LOSS, ACCURACY, CHRF, LENGTH),
        deciding="exact_match",
        against=BASE,
        scores=scores(items),
        differences={name: differences(items, name) for name in (TUNE, SMALL)},
        groups={
            column: {
                value: scores([c for c in items if c.columns[column] == value])
                for value in sorted({c.columns[column] for c in items})
            }
            for column in ("language", "topic")
        },
        confusion={name: confusion(items, name) for name in (BASE, TUNE, SMALL)} if labels else {},
        calibration={name: bins(number) for number, name in enumerate((BASE, TUNE, SMALL))}
        if labels
        else {},
        judge=() if labels else (JudgeResult(TUNE, 96, 41, 63, 0.54, 0.0000031, 1),),
        seconds=514.2,
        settings={"seed": "0", "token limit": "256", "temperature": "0",
                  "decant": "0.1.0", "llama.cpp": "b9310"},
    )  # fmt: skip


def differences(items: list[Case], name: str) -> dict[str, Difference]:
    both = [c for c in items if c.values[name]]
    gaps = [c.values[name]["exact_match"] - c.values[BASE]["exact_match"] for c in both]
    found = interval(gaps)
    counts = [sum(g > 0 for g in gaps), sum(g < 0 for g in gaps), sum(g == 0 for g in gaps)]
    words = f"better by {found.value:.1f} % ({found.low:.1f} to {found.high:.1f}) at n = {found.n}"
    return {
        "exact_match": Difference(found.value, found.low, found.high, found.n, 0.0000012,
                                  "better", words, *counts),
        "chrf": Difference(0.23, 0.19, 0.27, len(both), None, "better",
                           f"better by 0.23 (0.19 to 0.27) at n = {len(both)}"),
        "length": Difference(-2.1, -9.0, 5.0, len(both), None, "no difference shown",
                             f"no difference shown at n = {len(both)}"),
    }  # fmt: skip


def confusion(items: list[Case], name: str) -> Confusion:
    counts = [[0] * (len(LABELS) + 1) for _ in LABELS]
    for one in items:
        given = one.answers[name]
        column = LABELS.index(given) if given in LABELS else len(LABELS)
        counts[LABELS.index(one.reference)][column] += 1
    return Confusion(LABELS, tuple(map(tuple, counts)))


def bins(number: int) -> tuple[CalibrationBin, ...]:
    off = (0.22, 0.06, 0.09)[number]
    return tuple(
        CalibrationBin(sure, max(0.0, sure - off * sure), 6 + round(70 * sure**3))
        for sure in (0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)
    )


def single(items: list[Case]) -> Evaluation:
    """The results of the fine-tune alone."""
    whole = evaluation(items)
    return replace(
        whole, models=(MODELS[1],), against="", differences={}, judge=(),
        scores={TUNE: whole.scores[TUNE]},
    )  # fmt: skip
