"""WebDataset tar shards of triplets: `KEY.content.jpg`, `KEY.style.jpg`, `KEY.target.jpg` (or png) and `KEY.json`."""

from __future__ import annotations

import glob
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.shard_writer import ID_FIELDS, PARTS, ROLES, TAR_BLOCK, padded
from data.triplets import UnusableImage, decode_u8
from stylevar.contracts import Condition
from stylevar.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png")

logger = logging.getLogger(__name__)


class BadSample(Exception):
    """One sample of a shard cannot be used. `kind` is one of a few words, to count by; the message says why."""

    def __init__(self, key: str, kind: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.kind = kind


def expand_shards(patterns: Sequence[str | Path]) -> list[Path]:
    """Expand glob patterns to a sorted list of distinct shards. A pattern without a match is a UserError."""
    found: set[Path] = set()
    for pattern in patterns:
        matches = [Path(match) for match in glob.glob(str(pattern), recursive=True)]
        if not matches:
            raise UserError(f"no shard matches {str(pattern)!r}: check the path, or make shards with launch/prepare.py")
        found.update(matches)
    return sorted(found)


class TripletShards:
    """Random access to the triplets of some shards, in sorted key order.

    Tar members are indexed once and nothing is extracted; images are decoded when asked for. `cache=True` keeps decoded
    triplets in memory (58 kB each at 80 px), for sets small enough. `image_size` is the side that every image must
    have; None takes any, as long as the three of a triplet agree.

    Bad samples are skipped, logged and counted by kind, up to `max_bad_share` of all (one is always forgiven). Raises
    UserError beyond that, for a missing, unreadable or truncated shard, and for shards without a complete triplet.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        image_size: int | None = None,
        max_bad_share: float = 0.01,
        cache: bool = False,
    ) -> None:
        self.paths = [Path(path) for path in paths]
        self.image_size = image_size
        self.max_bad_share = max_bad_share
        self._cache: dict[int, Condition] | None = {} if cache else None
        self._bad: dict[str, str] = {}  # key -> kind
        rows: dict[str, list[tuple[int, int, int]]] = {}
        self._total = 0
        for number, path in enumerate(self.paths):
            for key, parts in index_shard(path).items():
                self._total += 1
                if key in rows:
                    raise UserError(f"key {key!r} of {path} is also in another shard: give each triplet its own key")
                missing = [part for part in PARTS if part not in parts]
                if missing:
                    self._record(BadSample(key, "missing part", f"no {' and no '.join(missing)} in {path}"))
                else:
                    rows[key] = [(number, *parts[part]) for part in PARTS]
        self._check_bound()
        if not rows:
            raise UserError(
                f"no complete triplet in {self._named()}: a sample is KEY.content.jpg, .style.jpg, .target.jpg, .json"
            )
        self.keys = tuple(sorted(rows))
        # int64 [samples, parts, (shard, offset, size)]: plain numbers stay small for millions of samples.
        self._where = np.array([rows[key] for key in self.keys], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Condition:
        """Decode one triplet, uint8 [3, H, W] each. Raises BadSample for one that cannot be used."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        key = self.keys[index]
        images: dict[str, torch.Tensor] = {}
        for part, role in enumerate(ROLES):
            try:
                images[role] = decode_u8(self._read(index, part))
            except UnusableImage as error:
                raise BadSample(key, error.kind, f"{role}: {error}") from error
            height, width = images[role].shape[1:]
            if self.image_size is not None and (height, width) != (self.image_size, self.image_size):
                raise BadSample(key, "wrong size", f"{role} is {width}x{height}, not {self.image_size}x{self.image_size}")
        if len({image.shape for image in images.values()}) != 1:
            raise BadSample(key, "wrong size", "content, style and target differ in size")
        condition = Condition(key=key, meta=self.meta(index), **images)
        if self._cache is not None:
            self._cache[index] = condition
        return condition

    def meta(self, index: int) -> dict[str, Any]:
        """The sample's JSON, without decoding images. Raises BadSample if it lacks an identity field."""
        key = self.keys[index]
        try:
            meta = json.loads(self._read(index, PARTS.index("json")))
        except ValueError as error:
            raise BadSample(key, "bad json", f"json: {error}") from error
        missing = [name for name in ID_FIELDS if not isinstance(meta, dict) or name not in meta]
        if missing:
            raise BadSample(key, "bad json", f"json: no {', '.join(missing)}")
        return meta

    def usable(self, index: int) -> Condition:
        """The triplet at `index`, or, if that is bad, the next good one after it: the same answer every time.

        Raises UserError with the counts by kind once more samples were bad than allowed.
        """
        for step in range(len(self)):
            at = (index + step) % len(self)
            try:
                return self[at]
            except BadSample as error:
                self._record(error)
                self._check_bound()
        raise UserError(f"no usable triplet in {self._named()}: {self._counts()}")

    def validate(self) -> None:
        """Decode every sample now, so that bad ones are met before a run: logs them, or raises UserError as `usable`."""
        for index in range(len(self)):
            self.usable(index)

    def _record(self, bad: BadSample) -> None:
        if bad.key not in self._bad:
            self._bad[bad.key] = bad.kind
            logger.warning("skipped sample %s", bad)

    def _check_bound(self) -> None:
        allowed = max(1, int(self.max_bad_share * self._total))
        if len(self._bad) > allowed:
            raise UserError(
                f"{len(self._bad)} of {self._total} samples in {self._named()} are bad and {allowed} allowed: "
                f"{self._counts()}; make the shards again, or set the image size that they have"
            )

    def _read(self, index: int, part: int) -> bytes:
        shard, offset, size = self._where[index, part].tolist()
        with open(self.paths[shard], "rb") as file:
            file.seek(offset)
            return file.read(size)

    def _named(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"{self.paths[0]}{more}" if self.paths else "an empty list of shards"

    def _counts(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(self._bad.values()).items()))


def index_shard(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """{key: {part: (offset, size)}} of one shard, known parts only. UserError if it is missing, cut off or damaged."""
    if not path.is_file():
        raise UserError(f"shard {path} does not exist: check the path, or make shards with launch/prepare.py")
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    end = 0
    try:
        with tarfile.open(path, "r:") as tar, open(path, "rb") as file:
            for member in tar:
                end = member.offset_data + padded(member.size)
                key, _, extension = member.name.partition(".")
                part, _, suffix = extension.lower().partition(".")
                if member.isfile() and (suffix in IMAGE_SUFFIXES if part in ROLES else part == "json" and not suffix):
                    samples.setdefault(key, {})[part] = (member.offset_data, member.size)
            # tarfile takes a damaged header, and a cut between two members, for the end: only zeros are the end.
            file.seek(end)
            if file.read(TAR_BLOCK) != bytes(TAR_BLOCK):
                raise tarfile.ReadError("damaged or cut off")
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"shard {path} is not a whole, uncompressed tar ({error}): copy or make it again") from error
    return samples
