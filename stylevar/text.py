"""Names of files as text that can be printed and stored."""

from __future__ import annotations


def printable(text: object) -> str:
    """`text` with an escape (`\\udcNN`) for each byte of a file's name that is not UTF-8.

    Python keeps such bytes as surrogates, which no stream, JSON parser, table or hash takes. All other text comes back
    as it is.
    """
    return str(text).encode("utf-8", "backslashreplace").decode()
