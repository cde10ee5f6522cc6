"""The life of a training run, the same for GRPO and SFT: opened, advanced, finished, closed."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Protocol

from launch.common.stop import Stop
from launch.run.run_folder import RunFolder
from launch.run.saving import saving


class Run(Protocol):
    """A run that its constructor has opened: at its start, or where a checkpoint left it.

    Steps are counted in the same way everywhere. `done` steps are done: it names checkpoints and places what is reported.
    The next step has the number `done`, counted from 0: it decides the step's data and random numbers.
    """

    folder: RunFolder

    @property
    def done(self) -> int:
        """Steps done."""
        ...

    def advance(self, stop: Stop) -> bool:
        """Train to the end (True), or until a stop is requested and a checkpoint is written (False)."""
        ...

    def finish(self) -> Path:
        """Write the run's model folder and return it."""
        ...

    def close(self) -> None:
        """Bring all reports to the disk."""
        ...


def drive(run: Run, program: str, stop: Stop) -> Path | None:
    """Take a run to its end; the folder of its model, or None if it was stopped.

    `program` is the script in launch/ that continues it. UserError for a disk that does not take what is written.
    """
    with saving(run.folder, program), closing(run):
        return run.finish() if run.advance(stop) else None
