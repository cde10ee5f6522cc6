"""One writer per run: a lock that is released when its process ends, even in a crash."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from stylevar.errors import UserError

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class RunBusy(UserError):
    """Another process is writing to the run."""


@contextmanager
def only_writer(run: Path) -> Iterator[Path]:
    """Hold the lock of the run's folder. Creates a missing folder, and removes it again if nothing was written to it.

    Yields the folder. Raises RunBusy if another process holds the lock, and UserError if the folder cannot be written. On a
    file system without locks, prints a warning to stderr and continues.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = _locked(run)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"run folder {run} is not writable ({reason}): choose another --runs or --name") from error
    try:
        yield run
    finally:
        _remove_if_empty(run, file)
        file.close()


def _locked(run: Path) -> TextIO:
    while True:
        file = (run / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                print(
                    f"warning: the file system of {run} has no locks: make sure that no other program writes to this run",
                    file=sys.stderr,
                )
                return file
            with file:
                if not isinstance(error, BlockingIOError):
                    raise
                file.seek(0)
                holder = file.read().strip() or "another process"
            raise RunBusy(
                f"run {run} is being written by {holder}: wait until that ends or stop it, or choose another --name"
            ) from None
        if _is_still_there(file, run / LOCK):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            return file
        file.close()


def _is_still_there(file: TextIO, path: Path) -> bool:
    """Whether the locked file is still the one at `path`: its previous holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_if_empty(run: Path, lock: TextIO) -> None:
    """Remove the folder of a run that could not start, unless it was moved and another run is starting in its place."""
    if os.path.isdir(run) and _is_still_there(lock, run / LOCK) and [entry.name for entry in run.iterdir()] == [LOCK]:
        (run / LOCK).unlink()
        with suppress(OSError):  # a disk may be mounted there
            run.rmdir()
