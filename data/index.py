"""Index the triplets of shards, from the manifests beside them or else from the tar headers."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.manifest import MANIFEST, PART_BYTES, read_manifest
from data.shard_writer import PARTS, ROLES, TAR_BLOCK, padded
from data.tar_headers import SmallHeaders, TooManyMembers, check_number, members
from stylevar.errors import UserError
from stylevar.text import printable

IMAGE_SUFFIXES = ("jpg", "jpeg", "png")
PLACES = tuple(f"{part}_{what}" for part in PARTS for what in ("offset", "size"))
COLUMNS = ("key", "shard", "dataset", "split", *PLACES)


@dataclass(frozen=True)
class TripletIndex:
    """N triplets in sorted key order, as plain arrays: small even for millions, and fast to send to processes.

    keys             UTF-8 bytes [N]
    shard            int32 [N], a number into `paths`
    places           int64 [N, 4, 2], (offset, size) of content, style, target and json; -1 if missing
    dataset, split   int32 [N], numbers into `datasets` and `splits`
    """

    paths: tuple[Path, ...]
    keys: NDArray[np.bytes_]
    shard: NDArray[np.int32]
    places: NDArray[np.int64]
    datasets: tuple[str, ...]
    dataset: NDArray[np.int32]
    splits: tuple[str, ...]
    split: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> TripletIndex:
        """Some of the triplets, in the same order."""
        chosen = {name: getattr(self, name)[rows] for name in ("keys", "shard", "places", "dataset", "split")}
        return replace(self, **chosen)

    def of_split(self, name: str) -> TripletIndex:
        """The triplets of one split."""
        return self.select(self.split == (self.splits.index(name) if name in self.splits else -1))

    def of_dataset(self, name: str) -> NDArray[np.int64]:
        """The indices of the triplets of one corpus."""
        return np.flatnonzero(self.dataset == (self.datasets.index(name) if name in self.datasets else -1))


def index_triplets(paths: Sequence[Path]) -> TripletIndex:
    """Index the triplets of `paths`. Without a manifest, the split is "train" and a shard's first triplet names its corpus.

    Raises UserError for a missing or damaged shard, a shard that does not match its manifest, and a key in two shards.
    """
    numbers = {path: number for number, path in enumerate(paths)}
    tables = []
    for folder in sorted({path.parent for path in paths}):
        some = {path: number for path, number in numbers.items() if path.parent == folder}
        tables.append(_from_manifest(folder, some) if (folder / MANIFEST).is_file() else _from_headers(some))
    table = pa.concat_tables([_plain(table) for table in tables]) if tables else _plain(_from_headers({}))
    table = table.take(pc.sort_indices(table, [("key", "ascending"), ("number", "ascending")]))
    # UTF-8 bytes sort like the text they encode, so both have the same order.
    keys = np.array(table["key"].cast(pa.binary()).to_numpy(zero_copy_only=False), dtype=np.bytes_)
    shard = table["number"].to_numpy().astype(np.int32)
    twice = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    if len(twice):
        key, path = keys[twice[0]].decode(), paths[shard[twice[0]]]
        raise UserError(f"key {key!r} of {path} is also in another shard: give each triplet its own key")
    places = np.stack([_integers(table[column]) for column in PLACES], axis=-1).reshape(-1, len(PARTS), 2)
    datasets, dataset = _codes(table["dataset"])
    splits, split = _codes(table["split"])
    return TripletIndex(tuple(paths), keys, shard, places, datasets, dataset, splits, split)


def _plain(table: pa.Table) -> pa.Table:
    """The columns of the index, in a fixed order and without dictionary encoding; `number` identifies the shard."""
    names = ("key", "number", "dataset", "split", *PLACES)
    columns = [table[name] for name in names]
    return pa.table([pc.cast(c, pa.string()) if pa.types.is_dictionary(c.type) else c for c in columns], names)


def _integers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return pc.fill_null(column, -1).to_numpy().astype(np.int64, copy=False)


def _codes(column: pa.ChunkedArray) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """The distinct values in sorted order, and the index of each row's value."""
    values = sorted(pc.unique(column).to_pylist())
    codes = pc.index_in(column, pa.array(values, pa.string()))
    return tuple(values), codes.to_numpy().astype(np.int32)


def _from_manifest(folder: Path, numbers: Mapping[Path, int]) -> pa.Table:
    """The manifest's rows of some shards; `numbers` are their numbers in the index."""
    table = read_manifest(folder, COLUMNS)
    if unknown := {path.name for path in numbers} - set(pc.unique(table["shard"]).to_pylist()):
        raise UserError(
            f"{folder / MANIFEST} does not list shard {min(unknown)}: move shards of other sets to another folder, and see "
            f"launch/prepare.py check {folder}"
        )
    names = pa.array([path.name for path in numbers], pa.string())
    at = pc.index_in(table["shard"], names)
    of_number = pa.array(list(numbers.values()), pa.int64())
    table = table.append_column("number", pc.take(of_number, at)).filter(pc.is_valid(at))
    ends = pc.max_element_wise(*(pc.add(table[f"{p}_offset"], table[f"{p}_size"]) for p in PARTS))
    needed = pa.table({"shard": table["shard"], "end": ends}).group_by("shard").aggregate([("end", "max")])
    for name, end in zip(needed["shard"].to_pylist(), needed["end_max"].to_pylist(), strict=True):
        path = folder / name
        if not path.is_file():
            raise UserError(f"shard {path} does not exist: check the path, or make shards with launch/prepare.py")
        if path.stat().st_size < end:
            raise UserError(
                f"shard {path} has {path.stat().st_size} bytes, {MANIFEST} says at least {end}: copy it again, and see "
                f"launch/prepare.py check {folder}"
            )
    return table


def _from_headers(numbers: Mapping[Path, int]) -> pa.Table:
    """The rows of some shards from their tar headers; `numbers` as in `_from_manifest`."""
    columns: dict[str, list] = {name: [] for name in ("key", "number", "dataset", "split", *PLACES)}
    for path, number in numbers.items():
        triplets = index_shard(path)
        dataset = _dataset(path, triplets)
        for key, places in triplets.items():
            for part in PARTS:
                offset, size = places.get(part, (None, None))
                columns[f"{part}_offset"].append(offset)
                columns[f"{part}_size"].append(size)
            for name, value in {"key": key, "number": number, "dataset": dataset, "split": "train"}.items():
                columns[name].append(value)
    text = ("key", "dataset", "split")
    return pa.table({name: pa.array(v, pa.string() if name in text else pa.int64()) for name, v in columns.items()})


def _dataset(path: Path, triplets: dict[str, dict[str, tuple[int, int]]]) -> str:
    """The corpus named by a shard's first JSON; "unknown" if it names none."""
    place = next((places["json"] for places in triplets.values() if "json" in places), None)
    if place is None:
        return "unknown"
    with open(path, "rb") as file:
        file.seek(place[0])
        try:
            return printable(str(json.loads(file.read(min(place[1], PART_BYTES)))["dataset"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return "unknown"  # reading the triplet itself raises the error


def index_shard(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """{key: {part: (offset, size)}} of one shard, for known parts only.

    Raises UserError if it is missing, truncated or damaged, has too many members, or two for one part of a triplet.
    """
    if not path.is_file():
        raise UserError(f"shard {path} does not exist: check the path, or make shards with launch/prepare.py")
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    end = 0
    try:
        # UTF-8 in any locale, so that keys are the same everywhere.
        with open(path, "rb") as file, tarfile.open(path, "r:", encoding="utf-8", tarinfo=SmallHeaders) as tar:
            check_number(file)
            for member in members(tar):
                end = member.offset_data + padded(member.size)
                key_and_part = member_part(member.name) if member.isfile() else None
                if key_and_part is None:
                    continue
                key, part = key_and_part
                if part in samples.setdefault(key, {}):
                    raise UserError(
                        f"shard {path} has a second {part} for key {key!r} ({printable(member.name)}): remove one of "
                        "them, or give each triplet its own key"
                    )
                samples[key][part] = (member.offset_data, member.size)
            # tarfile treats a damaged header, or a truncation between members, as the end; the real end is zeros.
            file.seek(end)
            if file.read(TAR_BLOCK) != bytes(TAR_BLOCK):
                raise tarfile.ReadError("damaged or cut off")
    except TooManyMembers as error:
        raise UserError(f"shard {path} has {error}: make several shards of it, with launch/prepare.py") from error
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"shard {path} is not a whole, uncompressed tar ({error}): copy or make it again") from error
    return samples


def member_part(name: str) -> tuple[str, str] | None:
    """(key, part) of a shard's member, or None if it is not part of a triplet.

    As in WebDataset, the key is the whole path up to the first dot of its last component, without a leading `./`. Hidden
    files, including the `._` files of macOS, have no key.
    """
    folder, _, last = PurePosixPath(name).as_posix().rpartition("/")
    stem, _, extension = last.partition(".")
    part, _, suffix = extension.lower().partition(".")
    if not stem or not (suffix in IMAGE_SUFFIXES if part in ROLES else part == "json" and not suffix):
        return None
    return printable(f"{folder}/{stem}" if folder else stem), part
