"""What the benchmark of a step measured for one phase."""

from __future__ import annotations

from dataclasses import dataclass

from launch.common.text import duration, operations, share


@dataclass(frozen=True)
class PhaseResult:
    """Median seconds, FLOPs, and the rate as a share of the peak of matrix products (None if nothing is multiplied)."""

    seconds: float
    flops: float
    share_of_peak: float | None

    @staticmethod
    def of(seconds: float, flops: float, peak: float) -> PhaseResult:
        return PhaseResult(seconds, flops, flops / seconds / peak if flops and seconds else None)

    def row(self, name: str, whole: float) -> tuple[str, ...]:
        if self.share_of_peak is None:
            return name, duration(self.seconds), share(self.seconds / whole), "", "", ""
        rate = f"{self.flops / self.seconds / 1e9:.1f}"
        work = (operations(self.flops), rate, share(self.share_of_peak))
        return name, duration(self.seconds), share(self.seconds / whole), *work
