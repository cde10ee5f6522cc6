"""Read small text files: settings, records and lists. Anything else at their path is refused before it is read."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from stylevar.errors import UserError

TEXT_BYTES = 64 * 2**20
"""No settings, record or list is larger."""
Kind = type | tuple[type, ...]


def read_text(path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The text of a small regular file, with its line ends as they are.

    Raises OSError if the file is missing, unreadable, too large, or no regular file (reading a named pipe could wait
    forever), and ValueError if it has another encoding.
    """
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    if found.st_size > TEXT_BYTES:
        raise OSError(errno.EINVAL, f"It has {found.st_size} bytes, the limit is {TEXT_BYTES}", str(path))
    return path.read_bytes().decode(encoding, errors)


def read_json(path: Path, remedy: str) -> Any:
    """The content of a JSON file. UserError, ending with `remedy`, if it cannot be read or is not JSON."""
    try:
        return json.loads(read_text(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({str(error).splitlines()[0]}): {remedy}") from error


def read_record(path: Path, remedy: str, **kinds: Kind) -> dict[str, Any]:
    """A JSON object that has at least the values named by `kinds`, each of its type or one of its types.

    UserError, ending with `remedy`, for any other file.
    """
    record = read_json(path, remedy)
    if not isinstance(record, dict):
        raise UserError(f"{path} is not a JSON object: {remedy}")
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            has = "is missing" if name not in record else f"is {record[name]!r:.40}"
            raise UserError(f"{path} is damaged ({name} {has}): {remedy}")
    return record
