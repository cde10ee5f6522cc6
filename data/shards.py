"""Read triplets from WebDataset tar shards: `KEY.content.jpg`, `KEY.style.jpg`, `KEY.target.jpg` (or png), `KEY.json`."""

from __future__ import annotations

import json
import logging
import os
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.index import TripletIndex, index_triplets
from data.manifest import PART_BYTES
from data.shard_writer import ID_FIELDS, INPUTS, PARTS, ROLES
from data.tokens import open_tokens
from data.triplets import UnusableImage, decode_u8
from stylevar.contracts import Condition
from stylevar.errors import UserError

__all__ = ["BadSample", "TripletShards"]

OPEN_SHARDS = 64
LISTED = 20
"""How many bad samples are named in the log. A large corpus can have thousands that are bad for one reason."""

logger = logging.getLogger(__name__)


class BadSample(Exception):
    """A sample of a shard cannot be used. `kind` is a short category, used for counting; the message gives the reason."""

    def __init__(self, key: str, kind: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.kind = kind


class ShardFiles:
    """Reads bytes from shards, and keeps a limited number of them open. Each process opens its own."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._open: dict[int, int] = {}
        weakref.finalize(self, _close_all, self._open)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        descriptor = self._open.pop(shard, None)
        if descriptor is None:
            if len(self._open) >= OPEN_SHARDS:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = os.open(self.paths[shard], os.O_RDONLY)
        self._open[shard] = descriptor  # the most recently used one is closed last
        return os.pread(descriptor, size, offset)

    def close(self) -> None:
        _close_all(self._open)

    def __reduce__(self) -> tuple[type[ShardFiles], tuple[Sequence[Path]]]:
        return ShardFiles, (self.paths,)


def _close_all(descriptors: dict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


class TripletShards:
    """Random access to the triplets of some shards, in sorted key order.

    Nothing is extracted; images are decoded on demand. `cache=True` keeps decoded triplets in memory (58 kB each at
    80 px), for small sets. `image_size` is the required side of every image; None accepts any size that a triplet's three
    images share.

    Bad samples are skipped, logged (the first `LISTED`) and counted by kind, up to a share `max_bad_share` (one is always
    allowed). Raises UserError beyond that, for a missing, unreadable or truncated shard, and for shards without a complete
    triplet.
    """

    def __init__(
        self,
        source: Sequence[str | Path] | TripletIndex,
        image_size: int | None = None,
        max_bad_share: float = 0.01,
        cache: bool = False,
        vae: str | None = None,
        needs_targets: bool = True,
    ) -> None:
        """With `vae`, the fingerprint of the VQ-VAE in use, triplets come with the tokens stored beside the shards.

        Without `needs_targets`, shards in which no sample has a target are read as pairs.
        """
        index = source if isinstance(source, TripletIndex) else index_triplets([Path(path) for path in source])
        self.image_size = image_size
        self.max_bad_share = max_bad_share
        self._cache: dict[int, Condition] | None = {} if cache else None
        self._bad: dict[str, str] = {}  # key -> kind
        self._total = len(index)
        self._files = ShardFiles(index.paths)
        self._tokens = None if vae is None else open_tokens(index.paths, vae)
        self.has_targets = needs_targets or bool((index.places[:, PARTS.index("target"), 0] >= 0).any())
        """Whether the triplets have targets: all of them, or none."""
        self._roles = ROLES if self.has_targets else INPUTS
        self.index = self._complete(index)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def has_tokens(self) -> bool:
        """Whether the triplets come with their VQ tokens."""
        return self._tokens is not None

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, in order."""
        return tuple(key.decode() for key in self.index.keys.tolist())

    def __getitem__(self, index: int) -> Condition:
        """Decode one triplet, uint8 [3, H, W] each; pairs have no target. Raises BadSample if it cannot be used."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        key, parts = self._key(index), self._read(index)
        images: dict[str, Any] = {"target": None}
        for role in self._roles:
            try:
                images[role] = decode_u8(parts[role])
            except UnusableImage as error:
                raise BadSample(key, error.kind, f"{role}: {error}") from error
            height, width = images[role].shape[1:]
            if self.image_size is not None and (height, width) != (self.image_size, self.image_size):
                raise BadSample(key, "wrong size", f"{role} is {width}x{height}, not {self.image_size}x{self.image_size}")
        if len({images[role].shape for role in self._roles}) != 1:
            raise BadSample(key, "wrong size", "content, style and target differ in size")
        condition = Condition(key=key, meta=_meta(key, parts["json"]), tokens=self._tokens_of(index), **images)
        if self._cache is not None:
            self._cache[index] = condition
        return condition

    def meta(self, index: int) -> dict[str, Any]:
        """The sample's JSON, without decoding images. Raises BadSample if it lacks an identity field."""
        return _meta(self._key(index), self._read(index)["json"])

    def usable(self, index: int) -> Condition:
        """The triplet at `index` or, if it is bad, the next good one. The result is always the same.

        Raises UserError with the counts by kind once there are more bad samples than allowed.
        """
        for step in range(len(self)):
            at = (index + step) % len(self)
            try:
                return self[at]
            except BadSample as error:
                self._record(error)
        raise UserError(f"no usable triplet in {self._named(self.index)}: {self._counts()}")

    def validate(self) -> None:
        """Decode every sample, to detect bad ones before a run: logs them, or raises UserError like `usable`."""
        for index in range(len(self)):
            self.usable(index)

    def _complete(self, index: TripletIndex) -> TripletIndex:
        """`index` without incomplete triplets."""
        there = index.places[:, :, 0] >= 0
        if not self.has_targets:
            there[:, PARTS.index("target")] = True  # nobody asks for them
        whole = np.asarray(there.all(axis=1))
        for row in np.flatnonzero(~whole):
            if not there[:, PARTS.index("target")].any():
                raise UserError(f"{self._named(index)} contain unpaired conditions, without a target, which cannot be used")
            lacking = " and no ".join(part for part, exists in zip(PARTS, there[row], strict=True) if not exists)
            path = index.paths[index.shard[row]]
            self._record(BadSample(index.keys[row].decode(), "missing part", f"no {lacking} in {path}"), index)
        if not whole.any():
            raise UserError(
                f"no complete triplet in {self._named(index)}: a sample is KEY.content.jpg, .style.jpg, .target.jpg, .json"
            )
        return index if whole.all() else index.select(whole)

    def _key(self, index: int) -> str:
        return self.index.keys[index].decode()

    def _read(self, index: int) -> dict[str, bytes]:
        """Read all parts of a triplet. They are adjacent, so one read is enough."""
        every = zip(PARTS, self.index.places[index].tolist(), strict=True)
        places = {part: place for part, place in every if place[0] >= 0}
        largest = max(size for _, size in places.values())
        if largest > PART_BYTES:
            raise BadSample(self._key(index), "too large", f"{largest} bytes, the limit is {PART_BYTES}")
        start = min(offset for offset, _ in places.values())
        end = max(offset + size for offset, size in places.values())
        # A shard of another program's may have them in another order.
        if end - start > 2 * sum(size for _, size in places.values()) + 65536:
            return {part: self._files.read(self.index.shard[index], *place) for part, place in places.items()}
        data = self._files.read(self.index.shard[index], start, end - start)
        return {part: data[at - start : at - start + size] for part, (at, size) in places.items()}

    def _tokens_of(self, index: int) -> torch.Tensor | None:
        """The tokens int16 [3, L], or None without token files."""
        if self._tokens is None:
            return None
        return self._tokens.get(int(self.index.shard[index]), int(self.index.places[index, PARTS.index("content"), 0]))

    def _record(self, bad: BadSample, index: TripletIndex | None = None) -> None:
        """Log a bad sample once, and raise UserError if there are too many."""
        if bad.key not in self._bad:
            self._bad[bad.key] = bad.kind
            if len(self._bad) <= LISTED:
                logger.warning("skipped sample %s", bad)
            elif len(self._bad) == LISTED + 1:
                logger.warning("skipped more samples, which are counted but not listed")
        allowed = max(1, int(self.max_bad_share * self._total))
        if len(self._bad) > allowed:
            raise UserError(
                f"{len(self._bad)} of {self._total} samples in {self._named(index or self.index)} are bad, the limit is "
                f"{allowed}: {self._counts()}; make the shards again, or set their image size"
            )

    def _named(self, index: TripletIndex) -> str:
        more = f" and {len(index.paths) - 1} more" if len(index.paths) > 1 else ""
        return f"{index.paths[0]}{more}" if index.paths else "an empty list of shards"

    def _counts(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(self._bad.values()).items()))


def _meta(key: str, data: bytes) -> dict[str, Any]:
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadSample(key, "bad json", f"json: {error}") from error
    missing = [name for name in ID_FIELDS if not isinstance(meta, dict) or name not in meta]
    if missing:
        raise BadSample(key, "bad json", f"json: no {', '.join(missing)}")
    return meta
