"""Draws a plot by matplotlib as SVG that takes the page's colours."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

from runtime.evaluation.evaluation import Evaluation
from runtime.evaluation.report.figure_text import metric_facts
from runtime.evaluation.report.inline_svg import FAINT, INK, LINE, SERIES, inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.8  # inches; 345 units of the drawing, about as many pixels of a page
FONT_SIZE = 12  # as large as the drawing's width allows, for phones
MARKERS = ("o", "s", "D", "^", "v", "P")
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)), (0, (8, 3)))
SERIES_MAX = len(SERIES)
"""Models in one plot: more colours look too much alike."""


@dataclass(frozen=True, slots=True)
class Legend:
    """A series of a plot."""

    name: str
    number: int
    """The number of its colour and marker, from 1."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing, and what the page says about it."""

    title: str
    caption: str
    svg: str
    legend: tuple[Legend, ...] = ()


@dataclass(frozen=True, slots=True)
class Sketch:
    """A plot that is still to be drawn."""

    title: str
    caption: str
    description: str
    """The text for readers who do not see the plot."""
    height: float
    """In inches, the axes' labels included."""
    draw: Callable[[Axes], None]
    legend: tuple[Legend, ...] = ()


def drawn(sketch: Sketch, name: str) -> Plot:
    """The plot of a sketch; the same sketch gives the same bytes."""
    with drawing(name) as figure:
        figure.set_size_inches(WIDTH, sketch.height)
        axes = figure.add_subplot()
        plain_axes(axes)
        sketch.draw(axes)
        out = StringIO()
        figure.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    svg = inline_svg(out.getvalue(), name, sketch.title, sketch.description)
    return Plot(sketch.title, sketch.caption, svg, sketch.legend)


@contextmanager
def drawing(name: str) -> Iterator[Figure]:
    """An empty figure under fixed settings; a user's matplotlibrc has no effect."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that its fonts lack: the browser has others
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": name,
                "text.parse_math": False,
                "axes.formatter.use_mathtext": False,
                "axes.unicode_minus": True,
                "font.size": FONT_SIZE,
                "axes.labelsize": FONT_SIZE,
                "xtick.labelsize": FONT_SIZE,
                "ytick.labelsize": FONT_SIZE,
                "text.color": INK,
                "axes.labelcolor": FAINT,
                "axes.edgecolor": LINE,
                "xtick.color": LINE,
                "ytick.color": LINE,
                "xtick.labelcolor": FAINT,
                "ytick.labelcolor": FAINT,
                "grid.color": LINE,
                "grid.linewidth": 0.6,
                "path.simplify": False,
            }
        )
        yield Figure(layout="constrained")


def plain_axes(axes: Axes) -> None:
    """Leave only the lines that help to read figures."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, axis="both")
    axes.set_axisbelow(True)


def series_of(evaluation: Evaluation) -> dict[str, Legend]:
    """Each model's place in legends: the same colour and marker in all plots of a page."""
    return {
        model.name: Legend(model.name, number % SERIES_MAX + 1)
        for number, model in enumerate(evaluation.models)
    }


def deciding_title(evaluation: Evaluation) -> str:
    """The deciding metric with its unit, for an axis."""
    metric = metric_facts(evaluation, evaluation.deciding)
    return f"{metric.title} ({metric.unit})" if metric.unit else metric.title
