"""What a word for files means: existing paths first, then braces and wildcards, alike whether the shell saw them or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.patterns import expand_braces, expand_shards, find_paths
from stylevar.errors import UserError


def touch(*paths: Path) -> list[Path]:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return list(paths)


@pytest.mark.parametrize("folder", ["data [v1]", "data {a,b}", "50% *", "a?b", "ü [é]"])
def test_an_existing_path_wins_over_its_reading_as_a_pattern(tmp_path: Path, folder: str) -> None:
    a, b = touch(tmp_path / folder / "train-0.tar", tmp_path / folder / "train-1.tar")
    touch(tmp_path / "data v" / "train-9.tar", tmp_path / "data a" / "train-9.tar", tmp_path / "axb" / "train-9.tar")
    for pattern in (".", "train-*.tar", "train-{0..1}.tar", "**", "train-[01].tar"):
        assert expand_shards([tmp_path / folder / pattern]) == [a, b], pattern
    assert expand_shards([tmp_path / folder / "train-[1].tar"]) == [b]


def test_a_shard_may_be_named_like_a_pattern(tmp_path: Path) -> None:
    odd, _ = touch(tmp_path / "train-{0..1}.tar", tmp_path / "train-0.tar")
    assert expand_shards([odd]) == [odd]


def test_braces_expand_as_webdataset_does(tmp_path: Path) -> None:
    from webdataset.shardlists import expand_urls

    shards = touch(*(tmp_path / f"{name}-{number:05}.tar" for name in ("train", "val") for number in range(4)))
    pattern = str(tmp_path / "{train,val}-{00000..00003}.tar")
    assert expand_shards(pattern) == shards
    assert sorted(map(str, expand_braces([pattern]))) == sorted(expand_urls(pattern))
    assert expand_shards([tmp_path / "{train,val}-*.tar"]) == shards


def test_every_alternative_has_to_be_there(tmp_path: Path) -> None:
    """A shard that is missing from a sequence is not left out in silence."""
    touch(tmp_path / "train-0.tar", tmp_path / "train-2.tar")
    with pytest.raises(UserError, match=r"no shard matches '.*train-1\.tar'"):
        expand_shards([tmp_path / "train-{0..2}.tar"])


def test_a_lone_brace_is_a_character(tmp_path: Path) -> None:
    (odd,) = touch(tmp_path / "a{b.tar")
    assert expand_shards([tmp_path / "a{b.*"]) == [odd]


def test_quoted_or_not_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = touch(tmp_path / "train-0.tar", tmp_path / "train-1.tar")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expand_shards("~/train-*.tar") == expand_shards(shards) == expand_shards(f"{tmp_path}/train-*.tar") == shards
    assert expand_shards("train-*.tar") == [Path("train-0.tar"), Path("train-1.tar")]


def test_a_shard_named_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shard,) = touch(tmp_path / "a.tar")
    monkeypatch.chdir(tmp_path)
    assert expand_shards([shard, "a.tar", "../" + tmp_path.name + "/*.tar"]) == [shard]


def test_hidden_files_of_a_folder_are_left_alone(tmp_path: Path) -> None:
    a, _ = touch(tmp_path / "a.tar", tmp_path / "._a.tar")
    assert expand_shards([tmp_path]) == [a]


def test_a_name_that_no_disk_takes_matches_nothing(tmp_path: Path) -> None:
    assert find_paths(tmp_path / ("x" * 5000)) == []
