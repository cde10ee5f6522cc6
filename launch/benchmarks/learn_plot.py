"""A picture of what was learned against what it took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from launch.benchmarks.gains import Learned
from stylevar.atomic import file_aside
from stylevar.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")
"""Told apart by colour-blind readers, too."""


def draw(variants: Sequence[Learned], path: Path) -> None:
    """Write `figure` as a PNG. UserError if it cannot be written."""
    try:
        with file_aside(path) as aside:
            figure(variants).savefig(aside, format="png", dpi=120)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another --out") from error


def figure(variants: Sequence[Learned]) -> Figure:
    """Gain against training seconds, and against trajectories.

    A line is the mean over seeds, the dark band its standard error, the light one reaches from the lowest to the highest
    seed.
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10, 4.2), layout="constrained")
    by_time, by_samples = drawn.subplots(1, 2, sharey=True)
    for number, variant in enumerate(variants):
        colour, style = COLOURS[number % len(COLOURS)], ("-", "--", ":")[number // len(COLOURS) % 3]
        _add(by_time, variant, [point.seconds for point in variant.points], colour, style)
        _add(by_samples, variant, [float(point.trajectories) for point in variant.points], colour, style)
    for axes, label in ((by_time, "training time, seconds"), (by_samples, "trajectories")):
        axes.axhline(0, color="#999999", linewidth=0.8, zorder=0)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    by_time.set_ylabel("held-out gain in reward")
    by_time.legend(frameon=False, fontsize=9)
    return drawn


def _add(axes: Axes, variant: Learned, spent: Sequence[float], colour: str, style: str) -> None:
    gains = [point.gain for point in variant.points]
    x, mean = np.array([0.0, *spent]), np.array([0.0, *(gain.mean for gain in gains)])
    error = np.array([0.0, *(gain.error_seeds or 0.0 for gain in gains)])
    low, high = (np.array([0.0, *values]) for values in zip(*((gain.lowest, gain.highest) for gain in gains), strict=True))
    count = len(variant.seeds)
    label = f"{variant.name} ({count} seed{'s' if count > 1 else ''})"
    axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.fill_between(x, mean - error, mean + error, color=colour, alpha=0.25, linewidth=0)
    axes.plot(x, mean, style, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=label)
