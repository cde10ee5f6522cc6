"""Tell errors of a full or broken disk, and of unusable paths, from all other errors."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from stylevar.text import clipped

_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ENODEV, errno.ENXIO, errno.ESTALE)
_UNUSABLE = (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EPERM)
_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors reports the number of an operating system's error


def disk_trouble(error: BaseException) -> str | None:
    """Why a file could not be read or written, in the operating system's words; None if `error` has another cause."""
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in _TROUBLE:
            return os.strerror(cause.errno) + (f": {cause.filename}" if cause.filename else "")
        match = _RUST.search(str(cause)) if type(cause).__name__ == "SafetensorError" else None
        if match and int(match[1]) in _TROUBLE:
            return os.strerror(int(match[1]))
    return None


def path_trouble(error: BaseException) -> str | None:
    """Which path cannot be used, and why, in the operating system's words; None if `error` has another cause."""
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in _UNUSABLE and isinstance(cause.filename, str):
            return f"{clipped(cause.filename)} cannot be used ({os.strerror(cause.errno)})"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes. Errors of Ray tasks keep theirs in `cause`."""
    current: BaseException | None = error
    while current is not None:
        yield current
        cause = getattr(current, "cause", None)
        current = cause if isinstance(cause, BaseException) else current.__cause__ or current.__context__
