"""Names of files as text: what can be printed and stored, and what a file system takes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from stylevar.errors import UserError

NAME_BYTES = 255
"""What nearly every file system takes as the name of one file."""
_UNSAFE = re.compile(r"[\x00-\x1f\x7f/\ud800-\udfff]")


def printable(text: object) -> str:
    """`text` with an escape (`\\udcNN`) for each byte of a file's name that is not UTF-8.

    Python keeps such bytes as surrogates, which no stream, JSON parser, table or hash takes. All other text comes back
    as it is.
    """
    return str(text).encode("utf-8", "backslashreplace").decode()


def safe_name(name: str) -> str:
    """`name` for a new file: no control characters, no bytes that are not UTF-8, and no dot that would hide it."""
    name = _UNSAFE.sub("_", name)
    return f"_{name[1:]}" if name.startswith(".") else name


def shortened(name: str, limit: int = NAME_BYTES) -> str:
    """`name` in at most `limit` bytes; one that is too long ends in a hash of itself, so that it stays unique."""
    encoded = _bytes(name)
    if len(encoded) <= limit:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: limit - 9].decode(errors='ignore')}-{digest}"


def check_path(path: Path, flag: str, utf8: bool = False) -> None:
    """UserError if `path`, which is to be written, has a name that is too long, or with `utf8` one that is not UTF-8."""
    for name in path.parts:
        if (size := len(_bytes(name))) > NAME_BYTES:
            raise UserError(f"{flag} {name[:40]}...: the name has {size} bytes, at most {NAME_BYTES} can be: shorten it")
    if utf8 and printable(path) != str(path):
        raise UserError(
            f"{flag} {printable(path)}: the path is not UTF-8, and the libraries that store tables, weights and "
            "TensorBoard files take no other: rename the folder, or choose another"
        )


def clipped(text: object, limit: int = 200) -> str:
    """The beginning of what may be very long, for an error's one line."""
    whole = printable(text)
    return whole if len(whole) <= limit else f"{whole[:limit]}..."


def _bytes(name: str) -> bytes:
    """As a file system has it: UTF-8, and the bytes that are not as they were."""
    return name.encode("utf-8", "surrogateescape")
