"""What is known about the cost of steps of different sizes."""

from __future__ import annotations

from dataclasses import dataclass

from launch.benchmarks.fits import Fit
from launch.common.text import duration, operations, size, table

AXES = {"conditions": "conditions (B)", "group": "group (G)", "depth": "depth", "image_size": "image size (px)"}
"""The fields of `Case` that are varied, and their names in words."""


@dataclass(frozen=True)
class Case:
    """The size of a step and of its model."""

    conditions: int
    group: int
    depth: int
    image_size: int


@dataclass(frozen=True)
class Point:
    """A case on one axis: FLOPs and peak memory of a step as predicted, without a reward, and measured seconds, if any."""

    axis: str
    case: Case
    flops: float
    memory_bytes: int
    seconds: float | None = None

    @property
    def at(self) -> int:
        """The value on the axis."""
        return int(getattr(self.case, self.axis))

    @property
    def trajectories(self) -> int:
        return self.case.conditions * self.case.group


@dataclass(frozen=True)
class CostResult:
    """What `--json` prints. `flops_per_second` is the rate of the first case, from which seconds are predicted."""

    device: str
    threads: int
    flops_per_second: float | None
    points: tuple[Point, ...]
    fits: tuple[Fit, ...]

    def seconds(self, point: Point) -> float | None:
        """Predicted seconds of a step: its FLOPs at the first case's rate."""
        return None if self.flops_per_second is None else point.flops / self.flops_per_second

    def text(self) -> str:
        """Tables for reading."""
        parts = [self._axis(axis) for axis in AXES]
        rate = "" if self.flops_per_second is None else f" at {operations(self.flops_per_second)}FLOP/s, as measured first"
        parts.append(f"on {self.device} with {self.threads} threads, without a reward; time is predicted from FLOPs{rate}")
        if self.fits:
            rows = [(f"{fit.memory_gb:g} GB", *fit.words()) for fit in self.fits]
            header = ("card", "largest depth at 256 px", "largest image at depth 20", "micro-batch at depth 20, 256 px")
            parts.append("what fits of the published recipe (--preset paper)\n" + table(header, rows))
        return "\n\n".join(parts)

    def _axis(self, axis: str) -> str:
        rows = [
            (
                str(point.at),
                operations(point.flops),
                _time(self.seconds(point)),
                _time(point.seconds),
                _time(None if point.seconds is None else point.seconds / point.trajectories),
                size(point.memory_bytes),
            )
            for point in self.points
            if point.axis == axis
        ]
        return table((AXES[axis], "FLOPs", "predicted", "measured", "a trajectory", "memory"), rows)


def _time(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)
