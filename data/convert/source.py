"""The output of every converter: triplets of pictures, which may still be in an archive, and rejects with a reason."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

SOURCE_BYTES = 512 * 2**20
"""Larger files of a corpus are not read: no picture within the limit of pixels is larger."""


@dataclass(frozen=True, slots=True)  # there may be millions
class Reject:
    """An item that cannot become a triplet. `kind` is a short category, used for counting; `reason` is for the user."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)  # there may be millions
class Piece:
    """A range of bytes in one file, or in the concatenation of several (a split archive)."""

    paths: tuple[Path, ...]
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """The bytes; fewer than `size` if the file is truncated. OSError if there are more than `SOURCE_BYTES`."""
        with JoinedReader(self.paths) as reader:
            size = reader.size - self.offset if self.size is None else self.size
            if size > SOURCE_BYTES:
                raise OSError(f"it has {size} bytes, the limit is {SOURCE_BYTES}")
            reader.seek(self.offset)
            return reader.read(-1 if self.size is None else self.size)


@dataclass(frozen=True, slots=True)  # there may be millions
class Picture:
    """A picture with its original name, either unread or as bytes. Many triplets may share a picture in a Piece."""

    name: str
    data: Piece | bytes

    def read(self) -> bytes:
        return self.data if isinstance(self.data, bytes) else self.data.read()


@dataclass(frozen=True, slots=True)  # there may be millions
class RawTriplet:
    """A triplet of a corpus, with its flags and scores. `target` is None for unpaired conditions."""

    content: Picture
    style: Picture
    target: Picture | None
    flags: Mapping[str, bool] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.target.name if self.target is not None else f"{self.content.name}&&{self.style.name}"


class Block(Protocol):
    """A part of a corpus that one process converts, deterministically. Picklable."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """Differs if the content differs, so that results from an earlier state of the source are not reused."""
        ...

    def __len__(self) -> int:
        """The number of items; 0 if it is unknown before reading."""
        ...

    def read(self) -> Iterator[RawTriplet | Reject]: ...


@dataclass(frozen=True)
class ListBlock:
    """A block whose items are known in advance."""

    name: str
    items: tuple[RawTriplet | Reject, ...]

    @property
    def fingerprint(self) -> str:
        return identity(repr(self.items).encode())

    def __len__(self) -> int:
        return len(self.items)

    def read(self) -> Iterator[RawTriplet | Reject]:
        return iter(self.items)


def in_blocks(dataset: str, items: list[RawTriplet | Reject], size: int) -> list[Block]:
    """Split `items` into numbered blocks of `size`."""
    return [ListBlock(f"{dataset}-{i // size:05d}", tuple(items[i : i + size])) for i in range(0, len(items), size)]


def identity(data: bytes) -> str:
    """The identity of an image, independent of its name: 16 hex digits of a hash of its bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


class JoinedReader:
    """Reads the concatenation of several files as one seekable stream."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._paths = paths
        self._sizes = [path.stat().st_size for path in paths]
        self._position = 0
        self._file: BinaryIO | None = None
        self._number = -1

    def __enter__(self) -> JoinedReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def size(self) -> int:
        """The bytes of all files together."""
        return sum(self._sizes)

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        start = {0: 0, 1: self._position, 2: self.size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes (all for -1); fewer only at the end."""
        left = self.size - self._position
        wanted = left if size < 0 else min(size, left)
        parts = []
        while wanted > 0:
            part = self._read_some(wanted)
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts)

    def _read_some(self, wanted: int) -> bytes:
        number, start = 0, 0
        while self._position >= start + self._sizes[number]:
            start += self._sizes[number]
            number += 1
        if number != self._number:
            if self._file is not None:
                self._file.close()
            self._file, self._number = self._paths[number].open("rb"), number
        assert self._file is not None
        self._file.seek(self._position - start)
        part = self._file.read(min(wanted, start + self._sizes[number] - self._position))
        if not part:
            raise EOFError(f"{self._paths[number]} became shorter while it was read")
        self._position += len(part)
        return part
