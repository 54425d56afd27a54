"""Draws loss and learning rate over the steps as an SVG with text elements."""

from __future__ import annotations

import html
import io
import math
from dataclasses import dataclass
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from trainer_engine.report.downsample import Numbers, in_order, smoothed, thinned, window_of
from trainer_engine.report.journal import JournalContents

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "run",  # the same run gives the same bytes
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # names may contain dollar signs
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#22252b",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e3e1da",
    "xtick.color": "#4b5058",
    "ytick.color": "#4b5058",
    "path.simplify": True,
}
RAW, SMOOTH, RATE, MARK, WRONG = "#9db4cf", "#1f4e8c", "#b5451d", "#4b5058", "#c0182b"
EVALUATIONS = ("#1a7f4b", "#8a3ffc", "#b28600", "#00717a", "#a2195b", "#5b6770")
MOST_MARKS = 200
MOST_EVALUATIONS = 12
WIDTH, HEIGHT, ROW_HEIGHT = 10.0, 5.6, 0.19
"""Size of the figure and of each further row of its legend, in inches."""
MOST_COLUMNS, LETTERS_A_ROW, LETTERS_A_SIGN, LONGEST_LABEL = 4, 120, 7, 44
"""Limits of the legend."""
LOG_FROM_RATIO = 12.0
"""Ratio of the largest to the smallest loss above which the scale is logarithmic."""


@dataclass(frozen=True)
class Series:
    """The steps of a run and the values of each step; NaN for values that were not finite."""

    steps: Numbers
    losses: Numbers
    smooth: Numbers
    learning_rates: Numbers

    @classmethod
    def of(cls, contents: JournalContents) -> Series:
        raw = (np.array(column, dtype=np.float64) for column in (contents.steps, contents.losses, contents.learning_rates))
        steps, losses, rates = in_order(*raw)
        return cls(steps, losses, smoothed(losses, window_of(len(losses))), rates)


def draw_curves(contents: JournalContents, name: str, model: str = "") -> bytes:
    """The figure as SVG, with ``name`` and ``model`` in its title. Raises ValueError without steps."""
    if not contents.steps:
        raise ValueError("curves need a step")
    series, buffer = Series.of(contents), io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        about = " · ".join(part for part in (model, _steps_in_words(contents, series)) if part)
        figure.suptitle(f"{name}\n{about}", x=0.01, ha="left", fontsize=12, color="#22252b")
        _draw_losses(upper, contents, series)
        _draw_rate(lower, series)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _accessible(buffer.getvalue(), f"Loss and learning rate: {name}", in_words(contents, series)).encode()


def _draw_losses(axes: Axes, contents: JournalContents, series: Series) -> None:
    marker = "." if len(series.steps) < 50 else None
    axes.plot(*thinned(series.steps, series.losses), color=RAW, linewidth=0.8, label="loss", marker=marker)
    window = window_of(len(series.steps))
    if len(series.steps) > window:
        axes.plot(*thinned(series.steps, series.smooth), color=SMOOTH, linewidth=1.8, label=f"mean of the last {window} steps")
    for number, (name, points) in enumerate(sorted(contents.evaluations.items())[:MOST_EVALUATIONS]):
        steps, values = in_order(*(np.array(column, dtype=np.float64) for column in zip(*points, strict=True)))
        colour = EVALUATIONS[number % len(EVALUATIONS)]
        line = "-" if number < len(EVALUATIONS) else "--"
        axes.plot(*thinned(steps, values), line, color=colour, linewidth=1.4, marker="o", markersize=3, label=_shortened(name))
    if (more := len(contents.evaluations) - MOST_EVALUATIONS) > 0:
        axes.plot([], [], " ", label=f"{more} more evaluation losses")
    finite = series.losses[np.isfinite(series.losses)]
    if len(finite) and finite.min() > 0 and finite.max() / finite.min() > LOG_FROM_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.4g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    _mark(axes, _validations(contents), at=1.0, marker="v", colour=RATE, label="validation")
    _mark(axes, np.array(sorted(set(contents.checkpoints)), dtype=np.float64), at=0.0, marker="^", colour=MARK, label="checkpoint")
    _mark(axes, series.steps[~np.isfinite(series.losses)], at=0.06, marker="x", colour=WRONG, label="loss not finite")
    axes.set_ylabel("loss")
    axes.grid(True, linewidth=0.6)
    _explain(axes)


def _explain(axes: Axes) -> None:
    """Put the legend above the axes, with as many columns as fit, and make the figure higher by its rows."""
    _, labels = axes.get_legend_handles_labels()
    columns = max(1, min(MOST_COLUMNS, LETTERS_A_ROW // (max(map(len, labels)) + LETTERS_A_SIGN)))
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, frameon=False, fontsize=9)
    cast("Figure", axes.get_figure(root=True)).set_size_inches(WIDTH, HEIGHT + ROW_HEIGHT * (math.ceil(len(labels) / columns) - 1))


def _shortened(name: str) -> str:
    """Shorten a name in the middle, because names of datasets often differ at their ends."""
    half = LONGEST_LABEL // 2
    return name if len(name) <= LONGEST_LABEL else f"{name[: half - 1]}…{name[-half:]}"


def _mark(axes: Axes, steps: Numbers, *, at: float, marker: str, colour: str, label: str) -> None:
    """Draw marks at a height of the axes, at most ``MOST_MARKS``."""
    if not len(steps):
        return
    places = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST_MARKS)).astype(int))
    label = label if len(places) == len(steps) else f"{label} ({MOST_MARKS} of {len(steps):,} shown)"
    shown = steps[places]
    transform = axes.get_xaxis_transform()
    size = 5 if len(places) < 40 else 3.5
    axes.plot(shown, np.full(len(shown), at), marker, color=colour, markersize=size, transform=transform, clip_on=False, label=label)


def _validations(contents: JournalContents) -> Numbers:
    return np.array(sorted({image.step for image in contents.images}), dtype=np.float64)


def _draw_rate(axes: Axes, series: Series) -> None:
    marker = "." if len(series.steps) < 50 else None
    axes.plot(*thinned(series.steps, series.learning_rates), color=RATE, linewidth=1.4, marker=marker)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate")
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=False)
    axes.grid(True, linewidth=0.6)


def _steps_in_words(contents: JournalContents, series: Series) -> str:
    first, last = int(series.steps[0]), int(series.steps[-1])
    of = f" of {contents.total_steps:,}" if contents.total_steps else ""
    return f"step {last:,}{of}" if first == last else f"steps {first:,} to {last:,}{of}"


def in_words(contents: JournalContents, series: Series) -> str:
    """A description of the figure for screen readers."""
    sentences = [f"{_steps_in_words(contents, series).capitalize()}."]
    finite = np.flatnonzero(np.isfinite(series.losses))
    if len(finite):
        first, last, least = series.losses[finite[0]], series.smooth[finite[-1]], finite[np.argmin(series.losses[finite])]
        sentences.append(f"The loss began at {first:.4g}; the mean of the last {window_of(len(series.steps))} steps is {last:.4g}.")
        sentences.append(f"The least was {series.losses[least]:.4g} at step {int(series.steps[least]):,}.")
    if wrong := len(series.steps) - len(finite):
        sentences.append(f"{wrong:,} losses were not finite.")
    for name, points in sorted(contents.evaluations.items()):
        sentences.append(f"{name} was {points[-1][1]:.4g} at step {points[-1][0]:,}.")
    if contents.checkpoints:
        sentences.append(f"Checkpoints: {len(set(contents.checkpoints))}, the newest of step {contents.checkpoints[-1]:,}.")
    return " ".join(sentences)


def _accessible(svg: str, title: str, description: str) -> str:
    """Add a title and a description for screen readers, and remove the document type."""
    start = svg.index("<svg")
    end = svg.index(">", start)
    head = svg[start:end] + ' role="img" aria-labelledby="run-title run-description"'
    labels = f'<title id="run-title">{html.escape(title)}</title><desc id="run-description">{html.escape(description)}</desc>'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}>{labels}{svg[end + 1 :]}'
