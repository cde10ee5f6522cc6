"""Read Parquet files that claim no more rows than they can hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROW_BYTES = 4
"""Every row of our tables takes more: it has a key, a seed or measured numbers, which hardly compress."""


def read_parquet(path: Path, columns: Sequence[str] | None = None, read_dictionary: Sequence[str] = ()) -> pa.Table:
    """Read some or all columns; those of `read_dictionary` are dictionary-encoded in memory.

    Raises OSError or ArrowException if the file cannot be read, and ArrowInvalid before reading if it claims more rows than
    fit its size: a few bytes can stand for billions of equal rows.
    """
    with path.open("rb") as file:  # pyarrow cannot open a path that is not UTF-8
        size = file.seek(0, 2)
        parquet = pq.ParquetFile(file, read_dictionary=list(read_dictionary))
        rows = sum(parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups))
        if rows * ROW_BYTES > size:
            raise pa.ArrowInvalid(f"it claims {rows:,} rows in {size:,} bytes")
        return parquet.read(None if columns is None else list(columns))
