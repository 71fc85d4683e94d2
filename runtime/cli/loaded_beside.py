"""Loads the libraries of a report while models answer, and this process waits."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.core.events import Event, Progress, Report

if TYPE_CHECKING:
    from runtime.evaluation.metric import Metric

SWITCH_S = 0.0002  # a thread that asks a model waits no longer for this one, 5 ms by default


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
        """Import the libraries, compile the page's templates, and draw once, which reads fonts."""
        usual_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            self.load_libraries()
        finally:
            sys.setswitchinterval(usual_s)

    def load_libraries(self) -> None:
        from runtime.evaluation.metrics.ngram_metrics import LIBRARIES
        from runtime.evaluation.report.html_page import compile_templates
        from runtime.evaluation.report.plots import draw_nothing

        compile_templates()
        with suppress(ImportError):
            if any(LIBRARIES.get(metric.name) == "sacrebleu" for metric in self.metrics):
                importlib.import_module("sacrebleu.metrics")
            draw_nothing()

    def wait(self) -> None:
        if self.thread is not None:
            self.thread.join()
