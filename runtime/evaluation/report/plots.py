"""The plots of a report, in the order of the page."""

from __future__ import annotations

import importlib.util

from runtime.evaluation.evaluation import Evaluation
from runtime.evaluation.report.interest import Gathering
from runtime.evaluation.report.plot_drawing import Plot, Sketch, drawn
from runtime.evaluation.report.plot_kinds import sketches

BYTES_MAX = 1_500_000
"""The most bytes of all plots of a page together."""
MISSING_LIBRARY = (
    "There are no plots, as matplotlib is not installed: `pip install 'decant-llm[eval]'`."
)


def plots_of(evaluation: Evaluation, gathering: Gathering) -> tuple[list[Plot], str]:
    """The plots for which there is data, and a sentence about those that are missing."""
    if importlib.util.find_spec("matplotlib") is None:
        return [], MISSING_LIBRARY
    found: list[Plot] = []
    left = BYTES_MAX
    for number, sketch in enumerate(sketches(evaluation, gathering), 1):
        plot = drawn(sketch, f"plot{number}")
        left -= len(plot.svg)
        if left < 0:
            return found, "Further plots are left out, to keep the page small."
        found.append(plot)
    return found, ""


def draw_nothing() -> None:
    """Draw an empty plot, so that the first real one takes less time. Raises ImportError."""
    drawn(Sketch("", "", "", 2, lambda _: None), "nothing")
