"""Write WebDataset tar shards: `KEY.content.jpg`, `KEY.json`, `KEY.style.jpg`, `KEY.target.jpg` (or png)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webdataset as wds

from stylevar.atomic import file_aside

ROLES = ("content", "style", "target")
PARTS = (*ROLES, "json")
ID_FIELDS = ("dataset", "content_id", "style_id", "content_name", "style_name")
TAR_BLOCK = 512


@dataclass(frozen=True)
class EncodedTriplet:
    """One triplet to write: JPEG or PNG bytes, and in `meta` the identities of the images.

    An unpaired condition has no target.
    """

    key: str
    content: bytes
    style: bytes
    target: bytes | None
    meta: dict[str, Any]
    suffix: str = "jpg"


Places = dict[str, tuple[int, int]]
"""{part: (offset, size)} of a triplet's bytes in its shard."""


class ShardWriter:
    """Writes one uncompressed tar shard, which gets its name only when it is complete.

    The same triplets always give the same bytes: owner, mode and time in the tar headers are fixed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._whole = ExitStack()
        aside = self._whole.enter_context(file_aside(path))
        self._tar = wds.TarWriter(str(aside), user="stylevar", group="stylevar", mode=0o644, mtime=0)
        self._whole.callback(self._tar.close)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        self._whole.__exit__(*error)

    def add(self, triplet: EncodedTriplet) -> Places:
        """Append a triplet; returns the positions of its parts.

        Raises ValueError for a key with a dot or slash, or meta without an identity field: they could not be read back.
        """
        missing = [name for name in ID_FIELDS if name not in triplet.meta]
        if missing or "." in triplet.key or "/" in triplet.key:
            raise ValueError(f"key {triplet.key!r} has a dot or slash, or its meta lacks one of {ID_FIELDS}")
        members = {role: (f"{role}.{triplet.suffix}", getattr(triplet, role)) for role in ROLES}
        meta = json.dumps(triplet.meta, sort_keys=True, separators=(",", ":")).encode()
        members = {part: member for part, member in members.items() if member[1] is not None} | {"json": ("json", meta)}
        places: Places = {}
        for part, (suffix, data) in sorted(members.items()):
            self._tar.write({"__key__": triplet.key, suffix: data})
            # A long name, or one that is not ASCII, needs more than one header block.
            places[part] = (self._tar.tarstream.offset - padded(len(data)), len(data))
        self.count += 1
        return places


def padded(size: int) -> int:
    """The bytes that a member of `size` bytes takes up in a tar, without its header."""
    return -(-size // TAR_BLOCK) * TAR_BLOCK


def write_shard(path: Path, triplets: Iterable[EncodedTriplet]) -> int:
    """Write one complete shard; returns its number of triplets."""
    with ShardWriter(path) as writer:
        for triplet in triplets:
            writer.add(triplet)
    return writer.count
