"""The flags of a dry run."""

from __future__ import annotations

from dataclasses import dataclass

from stylevar.errors import UserError


@dataclass(frozen=True)
class PlanConfig:
    """What a dry run predicts, and for which device."""

    dry_run: bool = False
    """Print what the run will take (memory, FLOPs, step time, who works how much) and end: nothing is started or written."""
    what_if: tuple[int, ...] = ()
    """Predict a distributed step with each of these numbers of rollout workers, too; a dry run."""
    device_tflops: float | None = None
    """Dry run: TFLOP/s that each actor's own device sustains, in place of a short measurement on this machine."""
    device_memory_gb: float | None = None
    """Dry run: memory of a device in GB (10^9 bytes), in place of that of this machine's."""

    def __post_init__(self) -> None:
        if any(workers < 1 for workers in self.what_if):
            raise UserError(f"--what-if {' '.join(map(str, self.what_if))}: every number of workers must be at least 1")
        for name in ("device_tflops", "device_memory_gb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be positive")

    @property
    def wanted(self) -> bool:
        """Whether the program is to plan instead of run."""
        return self.dry_run or bool(self.what_if)
