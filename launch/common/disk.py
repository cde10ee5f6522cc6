"""What a failed write means to a run: which part is lost, what is kept, and how to go on."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from launch.common.commands import continuing
from launch.run.run_folder import RunFolder
from stylevar.errors import UserError

_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ENODEV, errno.ENXIO, errno.ESTALE)
_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors tells the number of an operating system's error


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


def disk_trouble(error: BaseException) -> str | None:
    """Why a file could not be written, in the operating system's words; None if `error` is about something else."""
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in _TROUBLE:
            return os.strerror(cause.errno) + (f": {cause.filename}" if cause.filename else "")
        match = _RUST.search(str(cause)) if type(cause).__name__ == "SafetensorError" else None
        if match and int(match[1]) in _TROUBLE:
            return os.strerror(int(match[1]))
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from; in errors of Ray tasks that is `cause`."""
    found: BaseException | None = error
    while found is not None:
        yield found
        cause = getattr(found, "cause", None)
        found = cause if isinstance(cause, BaseException) else found.__cause__ or found.__context__
