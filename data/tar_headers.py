"""The headers of a tar, of bounded size and number."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO

from data.shard_writer import TAR_BLOCK, padded

HEADER_BYTES = 2**20
MEMBERS = 1_000_000
"""The most members of one archive: their names and places fit into memory."""
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class SmallHeaders(tarfile.TarInfo):
    """For `tarfile.open(..., tarinfo=SmallHeaders)`: long names and extended headers are read into memory, so their size is
    limited. Raises ReadError for larger ones.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> SmallHeaders:
        """A header from its block of bytes."""
        member = super().frombuf(buf, encoding, errors)
        if member.type in _EXTENDED and member.size > HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size} bytes, the limit is {HEADER_BYTES}")
        return member


class TooManyMembers(tarfile.ReadError):
    """An archive has more than `MEMBERS` members."""

    def __init__(self) -> None:
        super().__init__(f"more than {MEMBERS:,} members")


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of `tar`. A loop over `tar` itself would keep them all in memory. Raises TooManyMembers."""
    count = 0
    while (member := tar.next()) is not None:
        count += 1
        if count > MEMBERS:
            raise TooManyMembers
        yield member
        tar.members.clear()  # type: ignore[attr-defined]  # typeshed does not list it


def check_number(file: IO[bytes]) -> None:
    """Raise TooManyMembers, in a fraction of the time of `members`, for the usual uncompressed tar. Rewinds `file`."""
    at = 0
    for _ in range(MEMBERS + 1):
        file.seek(at)
        size = file.read(TAR_BLOCK)[124:135].strip(b" \0")
        if not size or size.strip(b"01234567"):  # the end, a damaged header, or 8 GiB and more
            file.seek(0)
            return
        at += TAR_BLOCK + padded(int(size, 8))
    raise TooManyMembers
