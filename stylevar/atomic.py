"""Atomic writes of files and folders: write to a hidden path, sync to disk, rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stylevar.text import NAME_BYTES, shortened

ASIDE = ".aside-"
"""Prefix of entries that are being written or removed. A leftover one comes from a process that was killed."""


@contextmanager
def file_aside(target: Path) -> Iterator[Path]:
    """Yield a hidden path beside `target`; the file written there replaces it if the block ends without an error.

    The file gets the default permissions of a new file (safetensors creates files that only the owner can read).
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
    aside.mkdir()  # without parents: a deleted folder must not reappear with one file in it
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
    if target.exists():  # a run that was rewound writes the same folder again
        old = _beside(target, "old-")
        os.replace(target, old)
        os.replace(aside, target)
        remove(old)
    else:
        os.replace(aside, target)
    sync(target.parent)


def _beside(target: Path, what: str = "") -> Path:
    """The hidden path for `target`. Its name is shortened if it would exceed the file system's limit."""
    whole = f"{ASIDE}{what}{target.name}"
    # Keep the extension: many libraries derive the format from it.
    ending = target.suffix if len(target.suffix) <= 16 else ""
    return target.parent / f"{shortened(whole.removesuffix(ending), NAME_BYTES - len(ending))}{ending}"


def remove(path: Path) -> None:
    """Remove a file, link or folder if it exists. A folder is renamed first, so that nobody reads half of it."""
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
    """Flush a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
