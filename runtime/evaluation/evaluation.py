"""The results of an evaluation, as its reports show them; every part becomes JSON by `asdict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runtime.evaluation.item import Task
from runtime.evaluation.metric import Difference, Interval

Scores = Mapping[str, Mapping[str, Interval]]
"""By model, then by metric."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """The data that models were measured on."""

    name: str
    """The file or dataset, as the user named it."""
    task: Task
    layout: str
    """How rows were read, such as `messages (the last assistant's turn is the answer)`."""
    rows: int
    """Rows in the data."""
    items: int
    """Rows that were measured."""
    skipped: int = 0
    """Rows left out by --skip-bad."""
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences for the reader, such as that the adapter was trained on this file."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One of the models, with its costs and refusals."""

    name: str
    """Unique in the evaluation."""
    source: str
    """The file, or the server's address."""
    quant: str = ""
    """Such as Q4_K_M; empty if unknown."""
    nbytes: int = 0
    """Size of the files; 0 if unknown."""
    sha256: str = ""
    memory: int = 0
    """The engine's largest resident size in bytes; 0 if unknown."""
    tokens_per_second: float = 0.0
    """Median over items; 0 if unknown."""
    first_token_s: float = 0.0
    seconds: float = 0.0
    """Time that the items took, without those from the cache."""
    cached: int = 0
    """Items whose outcomes came from the cache."""
    refusals: Mapping[str, int] = field(default_factory=dict)
    """Items without an outcome, counted by reason."""
    cut_off: int = 0
    """Answers that ended at the token limit."""


@dataclass(frozen=True, slots=True)
class MetricFacts:
    """One of the metrics, for the reader."""

    name: str
    title: str
    unit: str
    higher_is_better: bool | None


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often each label was given for each right one."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """counts[right][given]; the last column counts answers that are no label."""


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Items whose chosen label has about the same probability."""

    confidence: float
    """Mean probability of the chosen label, 0 to 1."""
    accuracy: float
    """Share of items where the chosen label is right."""
    n: int


@dataclass(frozen=True, slots=True)
class Case:
    """One item with all models' outcomes."""

    id: str
    line: int
    question: str
    reference: str
    answers: Mapping[str, str]
    """By model; a model's refusal in words where it has no answer."""
    values: Mapping[str, Mapping[str, float]]
    """By model, then metric; a metric without a value for this item is absent."""
    verdicts: Mapping[str, str]
    """By model, except the one compared with: win, loss or tie in the deciding metric."""
    columns: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class JudgeResult:
    """A judge's verdicts on one model against the one compared with; both orders were asked."""

    model: str
    wins: int
    losses: int
    ties: int
    """All other items, such as those where the two orders contradict each other."""
    first_preferred: float
    """Share of all verdicts for the answer shown first, ties left out; 0.5 is without bias."""
    p: float
    """The p of the two-sided sign test, without the ties."""
    unusable: int = 0
    """Replies of the judge that are no verdict."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All results except the items', which another file holds: one Case per line."""

    id: str
    began: str
    """ISO 8601, with the offset."""
    data: DataFacts
    models: Sequence[ModelFacts]
    metrics: Sequence[MetricFacts]
    deciding: str
    """The metric by which an item is won or lost."""
    against: str
    """The model that the others are compared with; empty for a single model."""
    scores: Scores
    differences: Mapping[str, Mapping[str, Difference]]
    """By model, except the one compared with, then by metric."""
    groups: Mapping[str, Mapping[str, Scores]] = field(default_factory=dict)
    """By column, then by its value."""
    confusion: Mapping[str, Confusion] = field(default_factory=dict)
    calibration: Mapping[str, Sequence[CalibrationBin]] = field(default_factory=dict)
    judge: Sequence[JudgeResult] = ()
    seconds: float = 0.0
    is_complete: bool = True
    """False if it was interrupted: then it covers the items that every model has answered."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """The settings that answers depend on, such as the seed and the token limit, in words."""
