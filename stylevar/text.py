"""File names as text: make them printable, storable, and valid on every file system."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from stylevar.errors import UserError

NAME_BYTES = 255
"""The longest file name that nearly every file system accepts."""
_UNSAFE = re.compile(r"[\x00-\x1f\x7f/\ud800-\udfff]")


def printable(text: object) -> str:
    """`text` with an escape (`\\udcNN`) for each byte of a file name that is not UTF-8.

    Python represents such bytes as surrogates, which streams, JSON parsers, tables and hashes reject. All other text is
    returned unchanged.
    """
    return str(text).encode("utf-8", "backslashreplace").decode()


def safe_name(name: str) -> str:
    """`name` made safe for a new file: no control characters, no bytes that are not UTF-8, and no leading dot."""
    name = _UNSAFE.sub("_", name)
    return f"_{name[1:]}" if name.startswith(".") else name


def shortened(name: str, limit: int = NAME_BYTES) -> str:
    """`name` in at most `limit` bytes. A longer one is cut and ends in a hash of itself, so that it stays unique."""
    encoded = _bytes(name)
    if len(encoded) <= limit:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: limit - 9].decode(errors='ignore')}-{digest}"


def check_path(path: Path, flag: str, utf8: bool = False) -> None:
    """UserError if an output `path` has a name that is too long or, with `utf8`, is not UTF-8."""
    for name in path.parts:
        if (size := len(_bytes(name))) > NAME_BYTES:
            raise UserError(f"{flag} {name[:40]}...: the name has {size} bytes, the limit is {NAME_BYTES}: shorten it")
    if utf8 and printable(path) != str(path):
        raise UserError(
            f"{flag} {printable(path)}: the path is not UTF-8, as the libraries that store tables, weights and "
            "TensorBoard files require: rename the folder, or choose another"
        )


def clipped(text: object, limit: int = 200) -> str:
    """The beginning of a text that may be very long, for a one-line error message."""
    whole = printable(text)
    return whole if len(whole) <= limit else f"{whole[:limit]}..."


def _bytes(name: str) -> bytes:
    """The bytes of a file name: UTF-8, with bytes that are not UTF-8 restored."""
    return name.encode("utf-8", "surrogateescape")
