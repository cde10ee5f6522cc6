"""The last step of a conversion: join parts into shards of equal size, and write the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from data.convert.split import SPLITS
from data.manifest import MANIFEST, SCHEMA
from data.shard_writer import PARTS, TAR_BLOCK, padded
from stylevar.atomic import file_aside

END = bytes(2 * TAR_BLOCK)
"""The end mark of a tar: two blocks of zeros."""

Row = dict[str, Any]


def assemble(blocks: list[str], parts: Path, out: Path, dataset: str, shard_bytes: int) -> tuple[dict[str, int], int]:
    """Join the parts of `blocks` into OUT/SPLIT-DATASET-NNNNN.tar and write OUT/manifest.parquet, as the last file.

    Returns the number of triplets of each split, and the number of shards. After an interruption, start it again.
    """
    rows: list[Row] = []
    for name in blocks:
        rows += pq.read_table(parts / f"{name}.parquet").to_pylist()
    shards = 0
    with tqdm(total=len(rows), desc="joining shards", unit="triplet", leave=False) as bar:
        for split in SPLITS:
            for number, some in enumerate(_cut([row for row in rows if row["split"] == split], shard_bytes)):
                path = out / f"{split}-{dataset}-{number:05d}.tar"
                _join(some, parts, path)
                shards += 1
                bar.update(len(some))
    rows.sort(key=lambda row: row["key"])
    with file_aside(out / MANIFEST) as aside:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), aside)
    return dict(Counter(row["split"] for row in rows)), shards


def span(row: Row) -> tuple[int, int]:
    """(start, end) of a triplet's members in its shard, including headers and padding."""
    places = [(row[f"{part}_offset"], row[f"{part}_size"]) for part in PARTS if row[f"{part}_offset"] is not None]
    return min(offset for offset, _ in places) - TAR_BLOCK, max(offset + padded(size) for offset, size in places)


def _cut(rows: list[Row], shard_bytes: int) -> Iterator[list[Row]]:
    """Split `rows`, in order, into lists of at most `shard_bytes` (more only for a single larger triplet)."""
    some: list[Row] = []
    size = 0
    for row in rows:
        start, end = span(row)
        if some and size + end - start > shard_bytes:
            yield some
            some, size = [], 0
        some.append(row)
        size += end - start
    if some:
        yield some


def _join(rows: list[Row], parts: Path, path: Path) -> None:
    """Copy the members of `rows` into the shard `path`, and update their positions in `rows`."""
    with file_aside(path) as aside, open(aside, "wb") as shard:
        for part, some in groupby(rows, key=lambda row: row["shard"]):
            with open(parts / part, "rb") as source:
                for row in list(some):
                    _copy(row, source, shard)
                    row["shard"] = path.name
        shard.write(END)


def _copy(row: Row, source: BinaryIO, shard: BinaryIO) -> None:
    start, end = span(row)
    shift = shard.tell() - start
    source.seek(start)
    shard.write(source.read(end - start))
    for part in PARTS:
        if row[f"{part}_offset"] is not None:
            row[f"{part}_offset"] += shift
