"""A disk that is full or broken, told from errors of every other kind."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ENODEV, errno.ENXIO, errno.ESTALE)
_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors tells the number of an operating system's error


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
