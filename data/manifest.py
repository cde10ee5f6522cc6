"""The manifest of a prepared set: one row per triplet, so that a million can be indexed without opening a shard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.shard_writer import PARTS
from stylevar.errors import UserError

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
            missing = set(wanted) - set(pq.read_schema(file).names)
            table = None if missing else pq.read_table(file, columns=wanted, read_dictionary=repeated)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy it again, or prepare the set again") from error
    if table is None:
        raise UserError(f"{path} has no column {min(missing)!r}: prepare the set again, with launch/prepare.py")
    return table
