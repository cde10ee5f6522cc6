"""The life cycle of a training run, the same for GRPO and SFT: open, advance, finish, close."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Protocol

from launch.common.stop import Stop
from launch.run.run_folder import RunFolder
from launch.run.saving import saving


class Run(Protocol):
    """A training run. Its constructor opens it, at the start or at a checkpoint.

    Steps are counted in the same way everywhere. `done` is the number of completed steps; checkpoints and reports use it.
    Steps themselves are numbered from 0, so the next step has the number `done`, which determines its data and random
    numbers.
    """

    folder: RunFolder

    @property
    def done(self) -> int:
        """Number of completed steps."""
        ...

    def advance(self, stop: Stop) -> bool:
        """Train to the end (True), or until a stop is requested and a checkpoint is written (False)."""
        ...

    def finish(self) -> Path:
        """Write the run's model folder and return it."""
        ...

    def close(self) -> None:
        """Flush all reports to disk."""
        ...


def drive(run: Run, program: str, stop: Stop) -> Path | None:
    """Run to the end. Returns the folder of the run's model, or None if the run was stopped.

    `program` is the script in launch/ that continues the run. Raises UserError if the disk is full or broken.
    """
    with saving(run.folder, program), closing(run):
        return run.finish() if run.advance(stop) else None
