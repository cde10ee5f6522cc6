"""Explain a failed write to the user: what is lost, what is kept, and how to continue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from launch.common.commands import continuing
from launch.common.disk import disk_trouble
from launch.run.run_folder import RunFolder
from stylevar.errors import UserError


@contextmanager
def saving(run: RunFolder, program: str) -> Iterator[None]:
    """Turn errors from a full or broken disk, or a removed run folder, into a UserError that says how to continue.

    `program` is the script in launch/ that continues the run. Other errors pass through.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not run.config.is_file():
            raise UserError(
                f"run folder {run.path} was removed while the run was going, and its checkpoints with it: start it again"
            ) from error
        missing = run.missing()
        reason = disk_trouble(error) if missing is None else f"{missing} was removed"
        if reason is None:
            raise
        steps = run.steps()
        lost = f"all progress since the checkpoint of step {steps[-1]} is lost" if steps else "all progress is lost"
        command = continuing(program, run.path)
        raise UserError(
            f"run {run.path} cannot be written ({reason}): {lost}; fix the cause, then continue with: {command}"
        ) from error
