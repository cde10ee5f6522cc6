"""What a failed write means to a run: which part is lost, what is kept, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from launch.common.commands import continuing
from launch.common.disk import disk_trouble
from launch.run.run_folder import RunFolder
from stylevar.errors import UserError


@contextmanager
def saving(run: RunFolder, program: str) -> Iterator[None]:
    """Inside, a disk that is full or broken, or a run folder that was removed, is a UserError that says how to go on.

    `program` is the script in launch/ that continues the run. Other errors pass.
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
        kept = f"the checkpoint of step {steps[-1]} is kept, what came after it" if steps else "all that was learned"
        command = continuing(program, run.path)
        raise UserError(
            f"run {run.path} cannot be written ({reason}): {kept} is lost; mend that, then continue with: {command}"
        ) from error
