"""Models and data for evaluations, without an engine."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.core.errors import EngineError
from runtime.evaluation.data.dataset import Dataset
from runtime.evaluation.data.open_data import DataRequest, open_data
from runtime.evaluation.evaluated_model import AnswerSettings
from runtime.evaluation.item import Message
from runtime.evaluation.likelihood_groups import Continuations
from runtime.evaluation.outcome import Likelihoods, Outcome


@dataclass
class ScriptedModel:
    """Answers from a table; a question that is not in the table is echoed."""

    name: str
    answers: Mapping[str, str] = field(default_factory=dict)
    likely: Mapping[str, float] = field(default_factory=dict)
    """Log-probabilities of texts; any other text has minus its length."""
    dies_on: frozenset[str] = frozenset()
    refuses: Mapping[str, str] = field(default_factory=dict)
    only_answers: bool = False
    asked: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    requests: int = 2
    waits_at: str = ""
    """The question that is answered once `may_answer` is set."""
    may_answer: threading.Event = field(default_factory=threading.Event)

    @property
    def identity(self) -> dict[str, Any]:
        return {"scripted": self.name}

    def why_no_likelihoods(self) -> str:
        return "answers only" if self.only_answers else ""

    def answer(self, messages: Sequence[Message], settings: AnswerSettings) -> Outcome:
        question = str(messages[-1]["content"])
        with self.lock:
            self.asked.append(question)
        if question == self.waits_at:
            self.may_answer.wait(10)
        if question in self.dies_on:
            raise EngineError("the engine ended by SIGKILL")
        if question in self.refuses:
            return Outcome(refusal=self.refuses[question])
        text = self.answers.get(question, question)[: settings.max_tokens]
        return Outcome(text, "stop", tokens=len(text), tokens_per_second=10.0, first_token_s=0.5)

    def likelihoods(
        self, messages: Sequence[Message], texts: Sequence[str]
    ) -> list[Likelihoods] | str:
        with self.lock:
            self.asked.append("likelihoods")
        return [Likelihoods(self.likely.get(text, -float(len(text))), len(text)) for text in texts]

    def facts(self) -> dict[str, Any]:
        return {"source": "a table", "nbytes": 10 * len(self.name)}


@dataclass
class GroupedModel(ScriptedModel):
    """Takes several items in one request; a conversation in `dies_on` fails the whole request."""

    groups: list[list[str]] = field(default_factory=list)

    def likelihoods_of(self, asked: Sequence[Continuations]) -> list[list[Likelihoods] | str]:
        questions = [str(messages[-1]["content"]) for messages, _ in asked]
        with self.lock:
            self.groups.append(questions)
        if self.dies_on.intersection(questions):
            raise EngineError("the engine ended by SIGKILL")
        return [
            self.refuses[question] if question in self.refuses else self.likelihoods((), texts)
            for question, (_, texts) in zip(questions, asked, strict=True)
        ]


def dataset_of(folder: Path, rows: Sequence[Mapping[str, object]], **request: Any) -> Dataset:
    """A dataset of these rows, in a file."""
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return open_data(DataRequest(str(path), **request))


def questions(count: int, **columns: object) -> list[dict[str, object]]:
    """Rows in which the right answer equals the question."""
    return [{"question": f"say {n}", "answer": f"say {n}", **columns} for n in range(count)]


@dataclass
class ComparedModel(ScriptedModel):
    """Its distributions diverge by `nats` and 3 * `nats` at two tokens; it keeps `room` items."""

    nats: float = 0.0
    room: int = 1000
    kept: list[int] = field(default_factory=list)

    def keep(
        self, messages: Sequence[Message], text: str, number: int
    ) -> tuple[Likelihoods, bool] | str:
        (found,) = self.likelihoods(messages, [text])
        assert isinstance(found, Likelihoods)
        is_kept = len(self.kept) < self.room
        if is_kept:
            self.kept.append(number)
        return found, is_kept

    def divergences(
        self, messages: Sequence[Message], text: str, number: int
    ) -> tuple[Likelihoods, tuple[float, ...]] | str:
        (found,) = self.likelihoods(messages, [text])
        assert isinstance(found, Likelihoods)
        return found, (self.nats, 3 * self.nats)
