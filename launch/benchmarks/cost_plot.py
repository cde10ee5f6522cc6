"""A picture of how a step's time and memory grow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from launch.benchmarks.cost_result import CostResult
from stylevar.atomic import file_aside
from stylevar.errors import UserError


def draw(result: CostResult, axes: Mapping[str, str], path: Path) -> None:
    """Draw a column for each axis, time above memory: lines for predictions, dots for measurements.

    Raises UserError if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.6), layout="constrained")
    grid = figure.subplots(2, len(axes), sharex="col", sharey="row")
    unit = "seconds a step" if result.flops_per_second else "TFLOPs a step"
    for column, (axis, words) in enumerate(axes.items()):
        points = [point for point in result.points if point.axis == axis]
        at = [point.at for point in points]
        above, below = grid[0, column], grid[1, column]
        predicted = [result.seconds(point) or point.flops / 1e12 for point in points]
        above.plot(at, predicted, color="#4477aa", label="predicted from FLOPs")
        measured = [(point.at, point.seconds) for point in points if point.seconds is not None]
        if measured:
            above.plot(*zip(*measured, strict=True), "o", color="#cc6677", label="measured")
        below.plot(at, [point.memory_bytes / 1e9 for point in points], color="#4477aa")
        for panel in (above, below):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
        below.set_xticks(at, [str(value) for value in at])
        below.minorticks_off()
        below.set_xlabel(words)
    grid[0, 0].set_ylabel(unit)
    grid[1, 0].set_ylabel("predicted memory in GB")
    grid[0, 0].legend(frameon=False)
    try:
        with file_aside(path) as aside:
            figure.savefig(aside, format=path.suffix[1:], dpi=110)
    except OSError as error:
        raise UserError(f"--plot {path} cannot be written ({error.strerror}): choose another place") from error
