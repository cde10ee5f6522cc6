"""Files and folders that appear whole or not at all: written aside, brought to the disk, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stylevar.text import NAME_BYTES, shortened

ASIDE = ".aside-"
"""Prefix of what is being written or removed; an entry of this name was left by a process that was cut short."""


@contextmanager
def file_aside(target: Path) -> Iterator[Path]:
    """Yield a hidden path beside `target`; the file written there replaces it if the block ends without an error.

    Whoever writes it, the file gets the permissions of any new file (safetensors makes files for the owner alone).
    """
    aside = _beside(target)
    aside.unlink(missing_ok=True)
    aside.touch()
    permissions = aside.stat().st_mode & 0o777
    aside.unlink()
    try:
        yield aside
        aside.chmod(permissions)
        sync(aside)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    os.replace(aside, target)
    sync(target.parent)


@contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `target`, which takes its place if the block ends without an error.

    Permissions as in `file_aside`.
    """
    aside = _beside(target)
    remove(aside)
    aside.mkdir()  # without its parents: a folder that was removed must not come back with one file in it
    try:
        yield aside
        permissions = aside.stat().st_mode & 0o666
        for folder, _, files in os.walk(aside):
            for file in files:
                Path(folder, file).chmod(permissions)
                sync(Path(folder, file))
            sync(Path(folder))
    except BaseException:
        remove(aside)
        raise
    if target.exists():  # a rewound run comes by again
        old = _beside(target, "old-")
        os.replace(target, old)
        os.replace(aside, target)
        remove(old)
    else:
        os.replace(aside, target)
    sync(target.parent)


def _beside(target: Path, what: str = "") -> Path:
    """The hidden path for `target`, whose name is shortened where that of `target` leaves no room for more."""
    whole = f"{ASIDE}{what}{target.name}"
    # The ending stays, since many a library takes the format from it.
    ending = target.suffix if len(target.suffix) <= 16 else ""
    return target.parent / f"{shortened(whole.removesuffix(ending), NAME_BYTES - len(ending))}{ending}"


def remove(path: Path) -> None:
    """Remove a file, link or folder, if there is one; a folder is first renamed, so that nobody reads half of it."""
    if path.is_dir() and not path.is_symlink():
        if not path.name.startswith(ASIDE):
            hidden = _beside(path, "old-")
            shutil.rmtree(hidden, ignore_errors=True)
            os.replace(path, hidden)
            path = hidden
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
