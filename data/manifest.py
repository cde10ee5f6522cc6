"""The manifest of a prepared set: one row per triplet, so that a million can be indexed without opening a shard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.shard_writer import PARTS
from stylevar.errors import UserError
from stylevar.parquet_files import read_parquet
from stylevar.text import clipped

PART_BYTES = 64 * 2**20
"""The largest picture or JSON of a shard that is read: far more than any triplet has."""
MANIFEST, REJECTS = "manifest.parquet", "rejects.parquet"

SCHEMA = pa.schema(
    [("key", pa.string()), ("dataset", pa.string()), ("split", pa.string()), ("shard", pa.string())]
    # Offsets and sizes in the shard; an unpaired condition has no target.
    + [(f"{part}_{what}", pa.int64()) for part in PARTS for what in ("offset", "size")]
    + [(f"{role}_id", pa.string()) for role in ("content", "style", "target")]
    + [(f"{role}_name", pa.string()) for role in ("content", "style", "target")]
    + [("flags", pa.map_(pa.string(), pa.bool_())), ("scores", pa.map_(pa.string(), pa.float64()))]
)
REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in ("name", "kind", "reason", "block")])


def rows_to_table(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Convert rows, given as dictionaries, to a table; missing values are null."""
    return pa.Table.from_pylist(list(rows), schema=schema)


def read_manifest(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read some or all columns of a folder's manifest. UserError if it is missing, damaged or lacks a column."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{path} does not exist: name the folder that launch/prepare.py wrote")
    repeated = ["dataset", "split", "shard"]  # dictionary-encoded: stored once, not in every row
    wanted = SCHEMA.names if columns is None else list(columns)
    try:
        with path.open("rb") as file:  # pyarrow cannot open a path that is not UTF-8
            there = pq.read_schema(file)
        missing = set(wanted) - set(there.names)
        wrong = [name for name in wanted if name not in missing and there.field(name).type != SCHEMA.field(name).type]
        table = None if missing or wrong else read_parquet(path, wanted, repeated)
        if table is not None:
            table.validate(full=True)  # text is UTF-8, and no index leads nowhere
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names that are not UTF-8
        raise UserError(f"{path} cannot be read ({error}): copy it again, or prepare the set again") from error
    again = "prepare the set again, with launch/prepare.py"
    if table is None and missing:
        raise UserError(f"{path} has no column {min(missing)!r}: {again}")
    if table is None:
        raise UserError(f"{path}: column {wrong[0]!r} is of type {there.field(wrong[0]).type}: {again}")
    if (fault := _fault(table)) is not None:
        raise UserError(f"{path} is damaged ({fault}): {again}")
    return table


def _fault(table: pa.Table) -> str | None:
    """What no manifest of ours holds, or None."""
    for name in table.column_names:
        column = table[name]
        if name in ("key", "dataset", "split", "shard") and column.null_count:
            return f"{name} is empty in {column.null_count} rows"
        if name.endswith(("_offset", "_size")) and (pc.min(column).as_py() or 0) < 0:
            return f"{name} is negative"
    names = pc.unique(table["shard"]).to_pylist() if "shard" in table.column_names else []
    outside = next((name for name in names if name != PurePath(name).name), None)
    return None if outside is None else f"shard {clipped(outside, 40)!r} is no file name"
