"""Read a prepared set in full: compare its shards with the manifest, and look for duplicates and split leaks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from data.convert.archive import is_litter
from data.index import index_shard
from data.manifest import MANIFEST, PART_BYTES, REJECT_SCHEMA, read_manifest
from data.processes import process_pool
from data.shard_writer import PARTS, ROLES
from data.triplets import UnusableImage, decode_u8
from stylevar.errors import UserError
from stylevar.processes import starting_workers
from stylevar.text import check_path, printable

LISTED = "check.parquet"

Problem = tuple[str, str, str]
"""(key or file, kind, reason)"""
Row = dict[str, Any]


@dataclass(frozen=True)
class CheckResult:
    """The result of a check; `problems` are listed in the file `listed`."""

    triplets: int
    shards: int
    problems: list[Problem]
    listed: Path

    def summary(self) -> str:
        kinds = Counter(kind for _, kind, _ in self.problems)
        lines = [f"  {count} {kind}" for kind, count in sorted(kinds.items())]
        return "\n".join(
            [f"{self.triplets} triplets in {self.shards} shards: {'as in the manifest' if not lines else ''}", *lines]
        )


def check(folder: Path, workers: int = 1) -> CheckResult:
    """Compare the shards with the manifest, decode all pictures, and look for duplicates and split leaks.

    Writes the problems to FOLDER/check.parquet. Raises UserError if there is no readable manifest.
    """
    check_path(folder, "check", utf8=True)
    rows = read_manifest(folder).to_pylist()
    by_shard: dict[str, list[Row]] = {}
    for row in rows:
        by_shard.setdefault(row["shard"], []).append(row)
    problems = list(_strangers(folder, set(by_shard)))
    sizes: Counter[tuple[int, int]] = Counter()
    jobs = [(folder / shard, some) for shard, some in sorted(by_shard.items())]
    with tqdm(total=len(rows), desc="checking", unit="triplet") as bar:
        for new, count, seen in _results(jobs, workers):
            problems += new
            sizes += seen
            bar.update(count)
    if len(sizes) > 1:
        named = ", ".join(f"{count} of {width}x{height}" for (width, height), count in sizes.most_common())
        problems.append((MANIFEST, "several sizes", f"pictures of different sizes: {named}"))
    problems += [*_duplicates(rows), *_leaks(rows)]
    table = pa.Table.from_pylist(
        [{"name": name, "kind": kind, "reason": reason, "block": ""} for name, kind, reason in problems], REJECT_SCHEMA
    )
    pq.write_table(table.drop_columns(["block"]), folder / LISTED)
    return CheckResult(len(rows), len(by_shard), problems, folder / LISTED)


def _results(jobs: list[tuple[Path, list[Row]]], workers: int) -> Iterator[tuple[list[Problem], int, Counter]]:
    if workers == 1:
        yield from (check_shard(*job) for job in jobs)
        return
    with process_pool(min(workers, max(1, len(jobs)))) as pool:
        with starting_workers():
            results = pool.map(check_shard, *zip(*jobs, strict=True))
        yield from results


def check_shard(path: Path, rows: list[Row]) -> tuple[list[Problem], int, Counter]:
    """The problems of one shard, the number of rows it should have, and the number of pictures of each size."""
    sizes: Counter[tuple[int, int]] = Counter()
    try:
        members = index_shard(path)
    except UserError as error:
        return [(path.name, "damaged shard", str(error))], len(rows), sizes
    problems: list[Problem] = []
    with open(path, "rb") as file:
        for row in rows:
            wanted = {
                part: (row[f"{part}_offset"], row[f"{part}_size"]) for part in PARTS if row[f"{part}_offset"] is not None
            }
            places = members.pop(row["key"], None)
            if places is None:
                problems.append((row["key"], "not in shard", f"{path.name} has no such triplet"))
            elif places != wanted:
                problems.append((row["key"], "other place", f"{path.name} has it at another position than in the manifest"))
            else:
                problems += _check_triplet(file, row, wanted, sizes)
    problems += [(key, "not in manifest", f"{path.name} has it, but the manifest does not") for key in members]
    return problems, len(rows), sizes


def _check_triplet(file: Any, row: Row, places: dict[str, tuple[int, int]], sizes: Counter) -> Iterator[Problem]:
    for part, (offset, size) in places.items():
        if size > PART_BYTES:
            yield row["key"], "too large", f"{part} has {size} bytes, the limit is {PART_BYTES}"
            continue
        file.seek(offset)
        data = file.read(size)
        if part == "json":
            try:
                meta = json.loads(data)
                if any(meta[f"{role}_id"] != row[f"{role}_id"] for role in ROLES if row[f"{role}_id"] is not None):
                    yield row["key"], "other ids", "its JSON and the manifest have different ids"
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                yield row["key"], "bad json", f"{type(error).__name__}: {error}"
        else:
            try:
                height, width = decode_u8(data).shape[1:]
                sizes[(width, height)] += 1
            except UnusableImage as error:
                yield row["key"], error.kind, f"{part}: {error}"


def _strangers(folder: Path, known: set[str]) -> Iterator[Problem]:
    for path in sorted(folder.glob("*.tar")):
        if path.name not in known and not is_litter(path.name):
            yield printable(path.name), "unknown shard", "the manifest has no row for it"


def _duplicates(rows: list[Row]) -> Iterator[Problem]:
    keys = Counter(row["key"] for row in rows)
    yield from ((key, "key twice", f"{count} rows have it") for key, count in keys.items() if count > 1)
    first: dict[tuple[str, str, str | None], str] = {}
    for row in rows:
        same = first.setdefault((row["content_id"], row["style_id"], row["target_id"]), row["key"])
        if same != row["key"]:
            yield row["key"], "duplicate", f"the same three pictures as {same}"


def _leaks(rows: list[Row]) -> Iterator[Problem]:
    """Held-out contents, styles and pairs that are also in the training split."""
    train = [row for row in rows if row["split"] == "train"]
    trained = {
        "val_content": {row["content_id"] for row in train},
        "val_style": {row["style_id"] for row in train},
        "val_pair": {(row["content_id"], row["style_id"]) for row in train},
    }
    for row in rows:
        pair = row["content_id"], row["style_id"]
        held = {"val_content": pair[0], "val_style": pair[1], "val_pair": pair}.get(row["split"])
        if held is not None and held in trained[row["split"]]:
            yield row["key"], "split leak", f"{row['split']}, but its {row['split'].removeprefix('val_')} is trained on too"
