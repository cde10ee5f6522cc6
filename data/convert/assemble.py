"""The last step of a conversion: join parts into shards of equal size, and write the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from data.convert.split import SPLITS
from data.manifest import MANIFEST, SCHEMA
from data.shard_writer import PARTS, TAR_BLOCK, padded
from stylevar.atomic import file_aside

END = bytes(2 * TAR_BLOCK)
"""The end mark of a tar: two blocks of zeros."""


def assemble(blocks: list[str], parts: Path, out: Path, dataset: str, shard_bytes: int) -> tuple[dict[str, int], int]:
    """Join the parts of `blocks` into OUT/SPLIT-DATASET-NNNNN.tar and write OUT/manifest.parquet, as the last file.

    Returns the number of triplets of each split, and the number of shards. After an interruption, start it again.
    """
    # Tables, not lists of rows, which would take ten times the memory.
    rows = pa.concat_tables([pq.read_table(parts / f"{name}.parquet", schema=SCHEMA) for name in blocks])
    splits: dict[str, int] = {}
    joined = [SCHEMA.empty_table()]
    with tqdm(total=len(rows), desc="joining shards", unit="triplet", leave=False) as bar:
        for split in SPLITS:
            of_split = rows.filter(pc.equal(rows["split"], split))
            if len(of_split):
                splits[split] = len(of_split)
            for number, some in enumerate(_cut(of_split, shard_bytes)):
                joined.append(_join(some, parts, out / f"{split}-{dataset}-{number:05d}.tar"))
                bar.update(len(some))
    with file_aside(out / MANIFEST) as aside:
        pq.write_table(pa.concat_tables(joined).sort_by("key"), aside)
    return splits, len(joined) - 1


def _spans(rows: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each triplet's members start and end in their file, including headers and padding: int64 [N] each."""
    offsets = [rows[f"{part}_offset"] for part in PARTS]
    sizes = [padded(pc.fill_null(rows[f"{part}_size"], 0).to_numpy()) for part in PARTS]
    ends = [pc.add(offset, pa.array(size)) for offset, size in zip(offsets, sizes, strict=True)]
    return pc.min_element_wise(*offsets).to_numpy() - TAR_BLOCK, pc.max_element_wise(*ends).to_numpy()


def _cut(rows: pa.Table, shard_bytes: int) -> Iterator[pa.Table]:
    """Split `rows`, in order, into tables of at most `shard_bytes` (more only for a single larger triplet)."""
    starts, ends = _spans(rows)
    first = size = 0
    for number, needed in enumerate((ends - starts).tolist()):
        if number > first and size + needed > shard_bytes:
            yield rows.slice(first, number - first)
            first, size = number, 0
        size += needed
    if len(rows):
        yield rows.slice(first)


def _join(rows: pa.Table, parts: Path, path: Path) -> pa.Table:
    """Copy the members of `rows` into the shard `path`. Returns `rows` with their new positions."""
    starts, ends = _spans(rows)
    places = zip(rows["shard"].to_pylist(), starts.tolist(), ends.tolist(), strict=True)
    with file_aside(path) as aside, open(aside, "wb") as shard:
        for part, some in groupby(places, key=itemgetter(0)):
            with open(parts / part, "rb") as source:
                for _, start, end in some:
                    source.seek(start)
                    shard.write(source.read(end - start))
        shard.write(END)
    sizes = ends - starts
    shift = pa.array(np.cumsum(sizes) - sizes - starts)  # one triplet follows the other
    moved = {f"{part}_offset": pc.add(rows[f"{part}_offset"], shift) for part in PARTS}
    for name, column in {"shard": pa.array([path.name] * len(rows)), **moved}.items():
        rows = rows.set_column(rows.schema.get_field_index(name), SCHEMA.field(name), column)
    return rows
