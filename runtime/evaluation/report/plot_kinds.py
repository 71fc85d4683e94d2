"""The kinds of plots: scores, confusion, calibration, size, loss per item, lengths of answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from exporter.core.paths import size_text
from runtime.evaluation.evaluation import Confusion, Evaluation, MetricFacts, ModelFacts
from runtime.evaluation.metric import Interval
from runtime.evaluation.report.figure_text import (
    direction_text,
    figure_text,
    metric_facts,
    metrics_in_order,
    range_text,
    score_of,
)
from runtime.evaluation.report.inline_svg import FAINT, INK, SERIES, SURFACE, plain_label
from runtime.evaluation.report.interest import Gathering
from runtime.evaluation.report.plot_drawing import (
    DASHES,
    FONT_SIZE,
    MARKERS,
    SERIES_MAX,
    Legend,
    Sketch,
    deciding_title,
    series_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS_MAX = 8
"""Metrics with a plot of scores."""
MODELS_MAX = 16
"""Models in one plot of scores."""
MATRICES_MAX = 6
"""Models with a confusion matrix."""
LABELS_MAX = 20
"""Labels of a matrix: the others' cells would be too small to read."""
LABELS_WITH_COUNTS = 12
"""Labels up to which each cell shows its count."""
BARS = 24
"""Bars of a histogram."""
POINTS_SHOWN = 1500
"""Points of a scatter plot."""
NAME_LENGTH = 34  # characters of a model's name
LABEL_LENGTH = 14  # characters of a label beside a matrix


def sketches(evaluation: Evaluation, gathering: Gathering) -> Iterator[Sketch]:
    """The plots for which there is data, in the order of the page."""
    for metric in metrics_in_order(evaluation)[:METRICS_MAX]:
        yield from score_plot(evaluation, metric)
    yield from size_plot(evaluation)
    yield from loss_plots(evaluation, gathering)
    for model in list(evaluation.models)[:MATRICES_MAX]:
        if confusion := evaluation.confusion.get(model.name):
            yield from confusion_plot(model.name, confusion)
    yield from calibration_plot(evaluation)
    yield from length_plot(evaluation, gathering)


def finite_scores(
    evaluation: Evaluation, metric: str, models: Sequence[ModelFacts]
) -> list[tuple[ModelFacts, Interval]]:
    return [
        (model, score)
        for model in models
        if (score := score_of(evaluation, model.name, metric))
        and all(map(math.isfinite, (score.value, score.low, score.high)))
    ]


def score_plot(evaluation: Evaluation, metric: MetricFacts) -> Iterator[Sketch]:
    """The models' scores in one metric, with their intervals."""
    found = finite_scores(evaluation, metric.name, list(evaluation.models)[:MODELS_MAX])
    series = series_of(evaluation)
    if not found:
        return

    def draw(axes: Axes) -> None:
        for row, (model, score) in enumerate(found):
            number = series[model.name].number - 1
            whiskers(axes, score, row, number)
            place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
            axes.text(0, row - 0.4, plain_label(model.name, NAME_LENGTH), **place)
            axes.text(1, row - 0.4, figure_text(score.value), ha="right", **place)
        axes.set_ylim(len(found) - 0.6, -0.8)
        axes.margins(x=0.06)
        axes.set_yticks([])
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        if metric.unit:
            axes.set_xlabel(plain_label(metric.unit, NAME_LENGTH))

    yield Sketch(
        title=f"Score: {metric.title}",
        caption=f"Dot: score. Line: 95 % interval. {direction_text(metric).capitalize()}.",
        description="; ".join(
            f"{model.name}: {figure_text(score.value, metric.unit)},"
            f" 95 % interval {range_text(score, metric.unit)}"
            for model, score in found
        ),
        height=0.7 + 0.54 * len(found),
        draw=draw,
    )


def whiskers(axes: Axes, score: Interval, row: float, number: int) -> None:
    colour = SERIES[number % SERIES_MAX]
    axes.plot([score.low, score.high], [row, row], color=colour, linewidth=2)
    axes.plot(
        [score.value], [row], MARKERS[number % SERIES_MAX], color=colour, markersize=8,
        markeredgecolor=SURFACE,
    )  # fmt: skip


def size_plot(evaluation: Evaluation) -> Iterator[Sketch]:
    """The deciding score against the size of the files: what fewer bits cost."""
    metric = metric_facts(evaluation, evaluation.deciding)
    sized = sorted((m for m in evaluation.models if m.nbytes > 0), key=lambda m: m.nbytes)
    found = finite_scores(evaluation, evaluation.deciding, sized)
    series = series_of(evaluation)
    if len(found) < len(("one", "other")):
        return
    against = evaluation.against
    joined = f"The grey line joins the models other than {against}." if against else ""

    def draw(axes: Axes) -> None:
        line = [(m.nbytes / 1e9, s.value) for m, s in found if m.name != evaluation.against]
        axes.plot(*zip(*line, strict=True), color=FAINT, linewidth=1, zorder=1)
        for model, score in found:
            number = series[model.name].number - 1
            x, colour = model.nbytes / 1e9, SERIES[number]
            axes.plot([x, x], [score.low, score.high], color=colour, linewidth=2)
            axes.plot(
                [x], [score.value], MARKERS[number], color=colour, markersize=8,
                markeredgecolor=SURFACE,
            )  # fmt: skip
        axes.set_xlabel("size of the files in GB")
        axes.set_ylabel(plain_label(deciding_title(evaluation), NAME_LENGTH))
        axes.margins(x=0.12)
        axes.set_xlim(left=max(0, axes.get_xlim()[0]))

    yield Sketch(
        title=f"Score against size: {metric.title}",
        caption=f"Further left: smaller files. Vertical line: 95 % interval. {joined}",
        description="; ".join(
            f"{model.name}: {size_text(model.nbytes)}, {figure_text(score.value, metric.unit)}"
            for model, score in found
        ),
        height=3.2,
        draw=draw,
        legend=tuple(series[model.name] for model, _ in found),
    )


def loss_plots(evaluation: Evaluation, gathering: Gathering) -> Iterator[Sketch]:
    """Each compared model's loss per item against the loss of the one compared with."""
    series, against = series_of(evaluation), evaluation.against
    for model, (theirs, ours) in list(gathering.losses.items())[: SERIES_MAX - 1]:
        below = sum(own < other for own, other in zip(ours, theirs, strict=True))
        step = math.ceil(len(ours) / POINTS_SHOWN)
        shown = f" One item of {step} is drawn." if step > 1 else ""
        yield Sketch(
            title=f"Loss per item: {model} against {against}",
            caption=f"Each point is an item. Below the diagonal {model} is better:"
            f" {below} of {len(ours)} items.{shown}",
            description=f"{model} has the lower loss in {below} of {len(ours)} items.",
            height=3.9,
            draw=scatter(list(theirs[::step]), list(ours[::step]), series[model].number - 1,
                         (plain_label(against, NAME_LENGTH), plain_label(model, NAME_LENGTH))),
        )  # fmt: skip


def scatter(
    x: list[float], y: list[float], number: int, names: tuple[str, str]
) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        ends = min(*x, *y), max(*x, *y)
        margin = 0.04 * (ends[1] - ends[0]) or 0.5
        limits = ends[0] - margin, ends[1] + margin
        axes.plot(limits, limits, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(x, y, MARKERS[number], color=SERIES[number], markersize=5, alpha=0.55,
                  markeredgewidth=0)  # fmt: skip
        axes.set_xlim(limits)
        axes.set_ylim(limits)
        axes.set_aspect("equal")
        axes.set_xlabel(f"{names[0]} (nats)")
        axes.set_ylabel(f"{names[1]} (nats)")

    return draw


def confusion_plot(model: str, confusion: Confusion) -> Iterator[Sketch]:
    """How often each label was given for each right one."""
    size = min(len(confusion.labels), LABELS_MAX)
    total = [sum(row) for row in confusion.counts]
    rows = sorted(sorted(range(len(total)), key=lambda i: -total[i])[:size])
    if not rows or not sum(total):
        return
    columns = [*rows, len(confusion.labels)]
    counts = [
        [confusion.counts[i][j] if j < len(confusion.counts[i]) else 0 for j in columns]
        for i in rows
    ]
    names = [plain_label(confusion.labels[i], LABEL_LENGTH) for i in rows]
    dropped = len(confusion.labels) - size
    right = sum(confusion.counts[i][i] for i in range(len(confusion.labels)))
    yield Sketch(
        title=f"Confusion matrix: {model}",
        caption="Row: right label. Column: label given. Darker: larger share of the row."
        + (f" {dropped} rare labels are left out." if dropped else ""),
        description=f"{right} of {sum(total)} items are on the diagonal.",
        height=1.2 + min(0.42 * size, 4.2),
        draw=matrix(names, counts),
    )


def matrix(names: list[str], counts: list[list[int]]) -> Callable[[Axes], None]:
    """Draws a table of counts, shaded by the share of each row."""
    strongest = 0.55  # leaves the text on top readable, in both colour schemes

    def draw(axes: Axes) -> None:
        from matplotlib.patches import Rectangle

        size = FONT_SIZE if len(names) <= LABELS_WITH_COUNTS // 2 else FONT_SIZE - 2
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                share = strongest * count / max(sum(row), 1)
                axes.add_patch(
                    Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=(*rgb(SERIES[0]), share))
                )
                if len(names) <= LABELS_WITH_COUNTS:
                    axes.text(j, i, str(count), ha="center", va="center", fontsize=size,
                              color=INK if count else FAINT)  # fmt: skip
        is_long = len(names) > 4 or max(map(len, names)) > 8  # noqa: PLR2004 - else they overlap
        turn: dict[str, Any] = (
            {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
        )
        axes.set_xticks(range(len(names) + 1), [*names, "no label"], fontsize=size, **turn)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.set_xlim(-0.5, len(names) + 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.set_xlabel("label given")
        axes.set_ylabel("right label")

    return draw


def rgb(colour: str) -> tuple[float, float, float]:
    """The parts of a colour such as #0a141e, 0 to 1."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def calibration_plot(evaluation: Evaluation) -> Iterator[Sketch]:
    """How often the chosen label is right, against how sure the model was."""
    series = series_of(evaluation)
    found = [
        (series[name], bins)
        for name in series
        if (bins := [b for b in evaluation.calibration.get(name, ()) if b.n])
    ][:SERIES_MAX]
    if not found:
        return
    most = max(b.n for _, bins in found for b in bins)

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        for legend, bins in found:
            number = legend.number - 1
            x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
            axes.plot(x, y, color=SERIES[number], linewidth=1.5, linestyle=DASHES[number])
            for b in bins:
                axes.plot([b.confidence], [b.accuracy], MARKERS[number], color=SERIES[number],
                          markersize=4 + 7 * math.sqrt(b.n / most),
                          markeredgecolor=SURFACE, markeredgewidth=0.7)  # fmt: skip
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_aspect("equal")
        axes.set_xlabel("probability of the chosen label")
        axes.set_ylabel("share that is right")

    yield Sketch(
        title="Calibration of label probabilities",
        caption="On the diagonal a model is right as often as it is sure; below it is too sure."
        f" Larger points hold more items, at most {most}.",
        description="; ".join(
            f"{legend.name}: "
            + ", ".join(f"sure {b.confidence:.0%}, right {b.accuracy:.0%}" for b in bins)
            for legend, bins in found
        ),
        height=3.9,
        draw=draw,
        legend=tuple(legend for legend, _ in found),
    )


def length_plot(evaluation: Evaluation, gathering: Gathering) -> Iterator[Sketch]:
    """How long each model's answers are, in words."""
    found: list[tuple[Legend, list[int]]] = [
        (legend, sorted(gathering.lengths[name]))
        for name, legend in series_of(evaluation).items()
        if gathering.lengths.get(name)
    ][:SERIES_MAX]
    most = max((lengths[-1] for _, lengths in found), default=0)
    few = 3  # words: lengths of labels say nothing
    if most <= few:
        return
    end = max(lengths[int(0.99 * (len(lengths) - 1))] for _, lengths in found) + 1
    bars = min(end, BARS)
    edges = [end * step / bars for step in range(bars + 1)]

    def draw(axes: Axes) -> None:
        for legend, lengths in found:
            number = legend.number - 1
            weights = [100 / len(lengths)] * len(lengths)
            axes.hist(
                [min(length, end - 0.5) for length in lengths], edges, weights=weights,
                histtype="step", color=SERIES[number], linewidth=1.8, linestyle=DASHES[number],
            )  # fmt: skip
        axes.set_xlim(0, end)
        axes.set_xlabel("words")
        axes.set_ylabel("% of answers")

    yield Sketch(
        title="Length of answers",
        caption="Share of answers by their number of words."
        + (" The last bar also holds longer ones." if most >= end else ""),
        description="; ".join(
            f"{legend.name}: median {lengths[len(lengths) // 2]} words, longest {lengths[-1]}"
            for legend, lengths in found
        ),
        height=3,
        draw=draw,
        legend=tuple(legend for legend, _ in found),
    )
