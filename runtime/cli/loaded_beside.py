"""Loads the libraries of a report while models answer, and this process waits."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.core.events import Event, Progress, Report

if TYPE_CHECKING:
    from runtime.evaluation.metric import Metric


@dataclass
class LoadedBeside:
    """Has the report's libraries loaded once a model answers: until then, engines start."""

    report: Report
    metrics: Sequence[Metric]
    thread: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        self.report(event)
        if self.thread is None and isinstance(event, Progress) and event.done:
            self.thread = threading.Thread(target=self.load, name="libraries", daemon=True)
            self.thread.start()

    def load(self) -> None:
        """Import the libraries, and draw once, which reads the fonts."""
        from runtime.evaluation.metrics.ngram_metrics import LIBRARIES
        from runtime.evaluation.report.plots import draw_nothing

        with suppress(ImportError):
            if any(LIBRARIES.get(metric.name) == "sacrebleu" for metric in self.metrics):
                importlib.import_module("sacrebleu.metrics")
            draw_nothing()

    def wait(self) -> None:
        if self.thread is not None:
            self.thread.join()
