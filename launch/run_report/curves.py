"""Curves over steps as inline SVG, whose colours follow the page: light or dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from io import StringIO
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from launch.run_report.record import Array, Mark

POINTS = 600
"""Points kept of a long curve: each is the mean of its stretch."""
COLOURS = 6
# Placeholders for the page's own colours, which replace them in the finished SVG.
_INK, _GRID, _MARK = "#0a0b01", "#0a0b02", "#0a0b03"
_SERIES = [f"#0a0c{number:02d}" for number in range(COLOURS)]
_RAMP = "#0a0d"
_SIZE = (5.6, 2.9)
_COLUMNS = 5
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "svg.hashsalt": "stylevar",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "grid.color": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "path.simplify_threshold": 0.3,
}
_SHORT = {
    "peak_merge": "merge",
    "emergency_merge": "emergency merge",
    "rollback": "rollback",
    "reward_rollback": "reward rollback",
}


@dataclass(frozen=True)
class Line:
    """A curve: `steps` [N], `values` [N]. `colour` counts the page's colours, or is a share in [0, 1] of its ramp."""

    label: str
    steps: Array
    values: Array
    style: Literal["line", "faint", "points", "dashed"] = "line"
    colour: int | float = 0


@dataclass(frozen=True)
class Band:
    """The area between two curves."""

    label: str
    steps: Array
    low: Array
    high: Array
    colour: int = 0


@dataclass(frozen=True)
class Chart:
    """A picture of curves. The title says what is on the y axis."""

    title: str
    lines: Sequence[Line]
    about: str = ""
    band: Band | None = None
    levels: dict[str, float] = field(default_factory=dict)
    """Horizontal lines by their label; drawn if they lie near the curves."""
    zero: bool = False
    """Whether the y axis begins at 0."""


def draw(chart: Chart, marks: Sequence[Mark], span: tuple[int, int], number: int) -> str:
    """The chart as an `<svg>` element; `span` is the range of steps, `number` keeps its ids apart from other charts'."""
    with rc_context(_STYLE):
        figure = Figure(figsize=_SIZE)
        axes = figure.add_subplot()
        axes.grid(axis="y", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlim(span[0], span[1] + max(1, (span[1] - span[0]) / 50))
        if chart.band is not None:
            band = chart.band
            axes.fill_between(
                band.steps, band.low, band.high, color=_SERIES[band.colour], alpha=0.15, linewidth=0, label=band.label
            )
        for line in chart.lines:
            _add(axes, line)
        low, high = axes.get_ylim()
        for name, level in chart.levels.items():
            if low - (high - low) <= level <= high + (high - low):
                axes.axhline(level, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), label=name)
        low, high = axes.get_ylim()
        if chart.zero:
            # The margin was chosen for the curve's own range: a level curve would lie on the edge.
            axes.set_ylim(0, high + max(0, low) / 20)
        for mark in marks:
            axes.axvline(mark.step, color=_MARK, linewidth=1, linestyle=(0, (1, 2)))
            axes.annotate(
                _SHORT.get(mark.kind, mark.kind),
                (mark.step, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-2, -2),
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="top",
                fontsize=7,
                color=_MARK,
            )
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        handles, labels = axes.get_legend_handles_labels()
        lines = 0 if len(labels) < 2 else -(-len(labels) // _COLUMNS)
        if lines:
            figure.legend(
                handles, labels, loc="upper left", ncols=_COLUMNS, handlelength=1.4, columnspacing=1.0, borderaxespad=0.1
            )
        # By hand, because automatic layout takes most of the time of a chart.
        figure.subplots_adjust(left=0.125, right=0.985, bottom=0.15, top=0.965 - 0.065 * lines)
        out = StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(out.getvalue(), chart.title, number)


def _add(axes: Axes, line: Line) -> None:
    steps, values = thinned(line.steps, line.values)
    colour = _SERIES[line.colour % COLOURS] if isinstance(line.colour, int) else f"{_RAMP}{round(99 * line.colour):02d}"
    styles: dict[str, dict[str, Any]] = {
        "line": {"linewidth": 1.5},
        "faint": {"linewidth": 0.8, "alpha": 0.45},
        "points": {"linewidth": 1.0, "marker": "o", "markersize": 3.5},
        "dashed": {"linewidth": 1.2, "linestyle": (0, (5, 2))},
    }
    # A single value would be invisible as a line.
    style = styles["points" if len(steps) == 1 else line.style]
    axes.plot(steps, values, color=colour, label=line.label, **style)


def thinned(steps: Array, values: Array) -> tuple[Array, Array]:
    """At most `POINTS` points, each the mean of a stretch of equally many; gaps (NaN) do not spread."""
    if len(steps) <= POINTS:
        return steps, values
    cuts = np.linspace(0, len(steps), POINTS + 1).round().astype(int)
    counts = np.diff(cuts)
    finite = np.isfinite(values)
    sums = np.add.reduceat(np.where(finite, values, 0.0), cuts[:-1])
    seen = np.add.reduceat(finite.astype(float), cuts[:-1])
    means = np.divide(sums, seen, out=np.full(POINTS, np.nan), where=seen > 0)
    return np.add.reduceat(steps.astype(float), cuts[:-1]) / counts, means


def smoothed(values: Array, window: int) -> Array:
    """Running mean of the last `window` values, of those that are finite."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    seen = np.concatenate([[0.0], np.cumsum(finite)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - window, 0)
    count = seen[ends] - seen[begins]
    return np.divide(sums[ends] - sums[begins], count, out=np.full(len(values), np.nan), where=count > 0)


def _themed(svg: str, title: str, number: int) -> str:
    """The bare element: as wide as its place, with the page's variables as colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # matplotlib numbers ids from 1 in every chart: make them unique on the page.
    svg = re.sub(r'(id="|"#|url\(#)', rf"\g<1>c{number}-", svg)
    names = {_INK: "ink", _GRID: "grid", _MARK: "mark", **{colour: f"s{i}" for i, colour in enumerate(_SERIES)}}
    for colour, name in names.items():
        svg = svg.replace(colour, f"var(--{name})")
    mixed = r"color-mix(in oklab, var(--ramp-to) \1%, var(--ramp-from))"
    svg = re.sub(rf"{_RAMP}(\d\d)", mixed, svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1).strip()
