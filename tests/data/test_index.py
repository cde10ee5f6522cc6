"""The index of a prepared set comes from its manifest, and equals what the shards themselves say."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from prepared import prepare

from data.index import index_triplets
from data.manifest import MANIFEST
from data.patterns import expand_shards
from data.shards import TripletShards
from stylevar.errors import UserError


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("set"))


def test_a_manifest_says_what_the_headers_say(out: Path, tmp_path: Path) -> None:
    paths = expand_shards([out])
    assert len(paths) > 4
    with_manifest = index_triplets(paths)
    copies = []
    for path in paths:
        (tmp_path / path.name).write_bytes(path.read_bytes())
        copies.append(tmp_path / path.name)
    without = index_triplets(copies)
    for name in ("keys", "shard", "places", "dataset"):
        assert np.array_equal(getattr(with_manifest, name), getattr(without, name)), name
    assert with_manifest.datasets == without.datasets == ("noise",)
    assert set(with_manifest.splits) == {"train", "val_pair", "val_style", "val_content"}
    assert without.splits == ("train",)
    for split in with_manifest.splits:
        keys = {key.decode() for key in with_manifest.of_split(split).keys.tolist()}
        assert keys == set(TripletShards([path for path in paths if path.name.startswith(f"{split}-")]).keys)
        assert {TripletShards(with_manifest.of_split(split)).meta(0)["split"]} == {split}


def test_only_the_shards_that_are_named_are_read(out: Path) -> None:
    paths = expand_shards([out / "train-*.tar"])
    assert index_triplets(paths).splits == ("train",)
    assert TripletShards(paths)[0].content.shape == (3, 16, 16)


@pytest.mark.parametrize("fault", ["cut", "gone", "stranger", "damaged manifest", "foreign manifest"])
def test_a_manifest_that_does_not_match_is_refused(tmp_path: Path, fault: str) -> None:
    out = prepare(tmp_path, 6)
    paths = expand_shards([out])
    first = paths[0]
    message = {
        "cut": f"{first.name} has 512 bytes, manifest.parquet says at least",
        "gone": f"{first.name} does not exist",
        "stranger": "does not list shard stranger.tar",
        "damaged manifest": "cannot be read",
        "foreign manifest": "has no column",
    }[fault]
    if fault == "cut":
        first.write_bytes(first.read_bytes()[:512])
    elif fault == "gone":
        first.unlink()
    elif fault == "stranger":
        paths.append(tiny.shard(out / "stranger.tar", 2))
    elif fault == "damaged manifest":
        (out / MANIFEST).write_bytes((out / MANIFEST).read_bytes()[:100])
    else:
        pq.write_table(pq.read_table(out / MANIFEST).drop_columns(["json_size"]), out / MANIFEST)
    with pytest.raises(UserError, match=message):
        index_triplets(paths)


def test_two_sets_with_the_same_keys_are_refused(out: Path, tmp_path: Path) -> None:
    other = prepare(tmp_path)
    with pytest.raises(UserError, match="is also in another shard"):
        index_triplets(expand_shards([out, other]))
    third = index_triplets(expand_shards([out, prepare(tmp_path / "x", dataset="more")]))
    assert third.datasets == ("more", "noise")
    assert [len(third.of_dataset(name)) for name in third.datasets] == [24, 24]


def test_a_set_in_a_folder_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    out = prepare(tmp_path, 6)
    moved = out.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    shards = TripletShards(expand_shards([moved]))
    assert len(shards) == 6
    assert shards[0].content.shape == (3, 16, 16)
