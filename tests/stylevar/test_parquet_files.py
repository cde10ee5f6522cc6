"""Parquet files are read whole or in part, unless they claim more rows than they can hold."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stylevar.parquet_files import read_parquet


def test_columns_are_read_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"key": ["a", "b"], "split": ["train", "train"], "size": [1, 2]})
    pq.write_table(table, path)
    assert read_parquet(path) == table
    some = read_parquet(path, ["split", "key"], ["split"])
    assert pa.types.is_dictionary(some["split"].type)
    assert some["key"].to_pylist() == ["a", "b"]
    pq.write_table(table.slice(0, 0), path)
    assert len(read_parquet(path)) == 0


@pytest.mark.parametrize("group", [None, 100_000])
def test_a_few_bytes_do_not_stand_for_millions_of_rows(tmp_path: Path, group: int | None) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"key": pa.array(["a"] * 1_000_000)}), path, row_group_size=group)
    assert path.stat().st_size < 100_000
    with pytest.raises(pa.ArrowInvalid, match="claims 1,000,000 rows in"):
        read_parquet(path)
