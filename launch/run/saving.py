"""Explain a failed write to the user: what is lost, what is kept, and how to continue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.common.commands import continuing
from launch.common.disk import disk_trouble
from launch.run.run_folder import RunFolder
from stylevar.errors import UserError


@contextmanager
def saving(run: RunFolder, program: str) -> Iterator[None]:
    """Turn errors from a full or broken disk, or a removed or moved run folder, into a UserError that says how to continue.

    `program` is the script in launch/ that continues the run. Other errors pass through.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        place = run.place()
        if place is None or not (place / run.config.name).is_file():
            raise UserError(
                f"run folder {run.path} was removed or moved while the run was going: start the run again or, if the folder "
                "was moved, continue it there with --resume FOLDER"
            ) from error
        if place != run.path:
            raise UserError(
                f"run folder {run.path} was moved to {place} while the run was going: {_lost(place)}; continue with: "
                f"{continuing(program, place)}"
            ) from error
        missing = run.missing()
        reason = disk_trouble(error) if missing is None else f"{missing} was removed"
        if reason is None:
            raise
        command = continuing(program, run.path)
        raise UserError(
            f"run {run.path} cannot be written ({reason}): {_lost(run.path)}; fix the cause, then continue with: {command}"
        ) from error


def _lost(run: Path) -> str:
    """What an error costs a run."""
    steps = RunFolder(run).steps()
    return f"all progress since the checkpoint of step {steps[-1]} is lost" if steps else "all progress is lost"
