"""ImagePulse-StyleTransfer: `.tar.gz` archives of PNGs and of JSON files that combine them to triplets."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data.convert.archive import TAR_BLOCK, check_end, is_litter, safe_name
from data.convert.source import SOURCE_BYTES, Block, Picture, RawTriplet, Reject, identity
from data.shard_writer import ROLES
from data.tar_headers import SmallHeaders, members
from stylevar.errors import UserError
from stylevar.text import printable

FIELDS = {"content": "image_1", "style": "image_2", "target": "image_4"}
KEY_PART = 40
"""Longest archive name in keys, which must fit the 100 characters of a tar header."""
Notes = tuple[dict[str, bool], dict[str, float]]
"""A triplet's flags and scores."""
DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error)


def blocks(source: Path, dataset: str = "imagepulse") -> list[Block]:
    """One block per archive, because a compressed stream cannot be read from the middle."""
    archives = sorted(path for pattern in ("*.tar.gz", "*.tgz", "*.tar") for path in source.glob(pattern))
    archives = [path for path in archives if not is_litter(path.name)]
    if not archives:
        raise UserError(f"{source} has no .tar.gz archive: check the path")
    return [ArchiveBlock(f"{dataset}-{key_part(path.name.partition('.')[0])}", path) for path in archives]


@dataclass(frozen=True)
class ArchiveBlock:
    """One archive, read twice sequentially: first its JSON files, then the pictures that they name."""

    name: str
    path: Path

    @property
    def fingerprint(self) -> str:
        return identity(printable(f"{self.path} {self.path.stat().st_size}").encode())

    def __len__(self) -> int:
        return 0

    def read(self) -> Iterator[RawTriplet | Reject]:
        """Yield each triplet once its last picture is read. A picture is kept only while a triplet still needs it."""
        records: list[tuple[str, dict[str, str], Notes]] = []
        for name, data in self._members(".json"):
            if isinstance(data, Reject):
                yield data
                continue
            parsed = _record(name, data)
            if isinstance(parsed, Reject):
                yield parsed
            else:
                records.append(parsed)
        waiting: dict[str, list[int]] = {}
        for number, (_, paths, _) in enumerate(records):
            for path in set(paths.values()):
                waiting.setdefault(path, []).append(number)
        uses = Counter({path: len(numbers) for path, numbers in waiting.items()})
        missing = [set(paths.values()) for _, paths, _ in records]
        held: dict[str, Picture] = {}
        for path, data in self._members(".png", ".jpg", ".jpeg", ".webp"):
            if isinstance(data, Reject) or path not in waiting or path in held:
                continue  # the first pass has reported the damage
            held[path] = Picture(path, data)
            for number in waiting[path]:
                missing[number].discard(path)
                if not missing[number]:
                    name, paths, (flags, scores) = records[number]
                    content, style, target = (held[paths[role]] for role in ROLES)
                    yield RawTriplet(content, style, target, flags, scores)
                    for done in set(paths.values()):
                        uses[done] -= 1
                        if not uses[done]:
                            del held[done]
        for (name, paths, _), lacking in zip(records, missing, strict=True):
            if lacking:
                role = next(role for role in ROLES if paths[role] in lacking)
                yield Reject(name, f"missing {role}", f"{self.path.name} has no {paths[role]}")

    def _members(self, *suffixes: str) -> Iterator[tuple[str, bytes | Reject]]:
        """Yield the files with one of `suffixes`, in order. The JSON pass also yields a Reject if the archive is damaged."""
        seen: set[str] = set()
        first_reading = ".json" in suffixes
        try:
            with tarfile.open(self.path, "r|*", encoding="utf-8", tarinfo=SmallHeaders) as tar:
                for member in members(tar):
                    if member.isdir() or is_litter(member.name):
                        continue
                    name = safe_name(member)
                    if name is None or name in seen:
                        if first_reading:
                            yield member.name, self._refused(member.name, name)
                        continue
                    seen.add(name)
                    wanted = PurePosixPath(name).suffix.lower() in suffixes
                    if wanted and member.size > SOURCE_BYTES:
                        yield name, Reject(name, "too large", f"{self.path.name}: {member.size} bytes, over {SOURCE_BYTES}")
                    elif wanted:
                        file = tar.extractfile(member)
                        assert file is not None
                        yield name, file.read()
                # tarfile has read one of the two blocks of zeros at the end.
                assert tar.fileobj is not None
                check_end(tar.fileobj.read(TAR_BLOCK))
        except DAMAGE as error:
            reason = f"cut off or damaged after {len(seen)} files ({error})"
            yield self.path.name, Reject(self.path.name, "damaged archive", reason)

    def _refused(self, member: str, name: str | None) -> Reject:
        """The Reject for a member with an unsafe name, or the name of an earlier member."""
        if name is None:
            return Reject(member, "unsafe member", f"{self.path.name}: a link, or a path outside it")
        return Reject(member, "same name twice", f"{self.path.name} has an earlier file of that name")


def key_part(name: str) -> str:
    """`name` made valid as part of a key, which has neither dots nor slashes.

    Names that are long or not ASCII end in a hash of the whole name, so that they stay unique.
    """
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name)
    if name.isascii() and len(name) <= KEY_PART:
        return plain
    return f"{plain[: KEY_PART - 9]}-{identity(printable(name).encode())[:8]}"


def _record(name: str, data: bytes) -> tuple[str, dict[str, str], Notes] | Reject:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        return Reject(name, "bad json", str(error))
    if not isinstance(record, dict):
        return Reject(name, "bad json", "not an object")
    for field in FIELDS.values():
        if not isinstance(record.get(field), str) or not record[field]:
            return Reject(name, f"no {field}", f"the JSON names no {field}")
    try:
        notes = flags_and_scores(record)
    except (OverflowError, RecursionError) as error:  # a number of hundreds of digits, or endless nesting
        return Reject(name, "bad json", str(error))
    # Pictures are beside their JSON, whatever folder the names contain.
    folder = PurePosixPath(name).parent
    return name, {role: str(folder / PurePosixPath(record[field]).name) for role, field in FIELDS.items()}, notes


def flags_and_scores(record: Mapping[str, Any], prefix: str = "") -> Notes:
    """All booleans of a record as flags and all numbers as scores; nested values have dotted names."""
    flags: dict[str, bool] = {}
    scores: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, bool):
            flags[prefix + key] = value
        elif isinstance(value, (int, float)):
            scores[prefix + key] = float(value)
        elif isinstance(value, Mapping):
            more_flags, more_scores = flags_and_scores(value, f"{prefix}{key}.")
            flags |= more_flags
            scores |= more_scores
    return flags, scores
