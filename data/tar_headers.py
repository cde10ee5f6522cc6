"""The headers of a tar, of bounded size."""

from __future__ import annotations

import tarfile

HEADER_BYTES = 2**20
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
