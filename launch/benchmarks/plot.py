"""A picture of where a step's time goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from launch.benchmarks.result import PhaseResult
from launch.common.text import duration, share
from stylevar.atomic import file_aside
from stylevar.errors import UserError


def refuse_unknown(path: Path) -> None:
    """Raise UserError for a file format that is not supported."""
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"--plot {path}: give a .png or .svg file")


def draw_phases(phases: Mapping[str, PhaseResult], title: str, path: Path) -> None:
    """Draw a bar for each phase, with its time and share of the peak. Raises UserError if the file cannot be written."""
    from matplotlib.figure import Figure

    shown = {name: phase for name, phase in phases.items() if phase.seconds > 0}
    figure = Figure(figsize=(8, 0.42 * len(shown) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    names, seconds = list(shown), [phase.seconds for phase in shown.values()]
    bars = axes.barh(names, seconds, color=["#4477aa" if phase.share_of_peak else "#bbbbbb" for phase in shown.values()])
    labels = [
        duration(phase.seconds) + ("" if phase.share_of_peak is None else f", {share(phase.share_of_peak)} of peak")
        for phase in shown.values()
    ]
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(seconds))
    axes.set_xlabel("seconds")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10)
    try:
        with file_aside(path) as aside:
            figure.savefig(aside, format=path.suffix[1:], dpi=110)
    except OSError as error:
        raise UserError(f"--plot {path} cannot be written ({error.strerror}): choose another place") from error
