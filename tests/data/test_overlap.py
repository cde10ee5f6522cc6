"""Held-out triplets that are trained on are counted by their content, whatever their keys and files are called."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import tiny

from data.conditions import ConditionSets
from data.index import TripletIndex, index_triplets
from data.overlap import shared_triplets
from data.shard_writer import EncodedTriplet, write_shard
from data.shards import ShardFiles


def shard(path: Path, *triplets: tuple[int, int, int]) -> TripletIndex:
    """Triplets of pictures by their numbers; the keys say nothing of them."""
    meta = {"dataset": "noise", "content_id": 0, "style_id": 0, "content_name": "c", "style_name": "s"}
    rows = (
        EncodedTriplet(f"{path.stem}{i}", *(tiny.png(number) for number in numbers), meta, "png")
        for i, numbers in enumerate(triplets)
    )
    write_shard(path, rows)
    return index_triplets([path])


def test_a_shared_triplet_has_all_three_pictures_in_common(tmp_path: Path) -> None:
    train = shard(tmp_path / "a.tar", (1, 2, 3), (4, 5, 6), (7, 8, 9))
    heldout = shard(tmp_path / "b.tar", (7, 8, 9), (1, 2, 30), (1, 20, 3), (10, 2, 3), (2, 1, 3), (1, 2, 3))
    assert shared_triplets(train, heldout) == 2
    assert shared_triplets(train, shard(tmp_path / "c.tar", (1, 5, 9))) == 0


def test_pairs_are_compared_with_pairs(tmp_path: Path) -> None:
    train = index_triplets([tiny.shard(tmp_path / "a.tar", 4, targets=False)])
    assert shared_triplets(train, index_triplets([tiny.shard(tmp_path / "b.tar", 3, first=2, targets=False)])) == 2
    assert shared_triplets(train, index_triplets([tiny.shard(tmp_path / "c.tar", 3, first=2)])) == 0


def test_files_of_other_sizes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = shard(tmp_path / "a.tar", (1, 2, 3))
    heldout = index_triplets([tiny.shard(tmp_path / "b.tar", 2, size=20)])

    def read(self: ShardFiles, *place: int) -> bytes:
        raise AssertionError("a file was read")

    monkeypatch.setattr(ShardFiles, "read", read)
    assert shared_triplets(train, heldout) == 0


def test_one_warning_with_the_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = tiny.shard(tmp_path / "train.tar", 6)
    copied = tiny.shard(tmp_path / "heldout.tar", 3, first=4)  # two of the six, and another one
    apart = tiny.shard(tmp_path / "novel.tar", 2, first=50)

    def warnings(**patterns: Path) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            ConditionSets({name: (str(path),) for name, path in patterns.items()}, tiny.SIZE, None, 2, seed=0)
        return [record.getMessage() for record in caplog.records]

    (warning,) = warnings(train=train, heldout=copied, novel=apart)
    assert warning.startswith("2 of the 3 triplets of heldout are also trained on")
    assert "--shards" in warning
    assert warnings(train=train, heldout=apart) == []
    (both,) = warnings(train=train, heldout=copied, novel=train)
    assert "2 of the 3 triplets of heldout and 6 of the 6 triplets of novel" in both
