"""Shards: what is written comes back, and every way a shard can be wrong is told apart."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import webdataset as wds
from PIL import Image

from data.index import index_shard
from data.patterns import expand_shards
from data.shard_writer import EncodedTriplet, ShardWriter, write_shard
from data.shards import LISTED, BadSample, ShardFiles, TripletShards
from stylevar.contracts import ConditionBatch
from stylevar.errors import UserError

SIZE = 16
META = {name: name for name in ("dataset", "content_id", "style_id", "content_name", "style_name")}


def encoded(seed: int, size: int = SIZE, mode: str = "RGB", suffix: str = "png") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, {"png": "PNG", "jpg": "JPEG"}[suffix])
    return buffer.getvalue()


def triplet(number: int, **replaced: bytes) -> EncodedTriplet:
    images = {role: encoded(10 * number + i) for i, role in enumerate(("content", "style", "target"))}
    return EncodedTriplet(f"k{number:03d}", **(images | replaced), meta=META | {"number": number}, suffix="png")


def shard(folder: Path, count: int = 4, name: str = "a.tar", start: int = 0, **replaced: bytes) -> Path:
    """A shard whose first triplet has some of its images replaced."""
    path = folder / name
    write_shard(path, [triplet(start + i, **(replaced if i == 0 else {})) for i in range(count)])
    return path


def test_round_trip_in_key_order_over_shards(tmp_path: Path) -> None:
    late, early = shard(tmp_path, 2, "a.tar", start=2), shard(tmp_path, 2, "b.tar", start=0)
    shards = TripletShards([late, early], image_size=SIZE)
    assert shards.keys == ("k000", "k001", "k002", "k003")
    assert len(shards) == 4
    third = shards[2]
    assert third.meta["number"] == 2
    for i, role in enumerate(("content", "style", "target")):
        expected = np.array(Image.open(io.BytesIO(encoded(20 + i))))
        image = getattr(third, role)
        assert image.dtype == torch.uint8
        assert torch.equal(image, torch.from_numpy(expected).permute(2, 0, 1))


def test_pairs_are_read_where_no_target_is_needed(tmp_path: Path) -> None:
    pairs = tiny.shard(tmp_path / "pairs.tar", 3, targets=False)
    with pytest.raises(UserError, match="unpaired conditions, without a target"):
        TripletShards([pairs])
    found = TripletShards([pairs], tiny.SIZE, needs_targets=False)
    assert not found.has_targets
    assert found[1].target is None
    whole = TripletShards([tiny.shard(tmp_path / "triplets.tar", 3)], needs_targets=False)
    assert whole.has_targets
    assert torch.equal(found[1].style, whole[1].style)
    with pytest.raises(ValueError, match="only 1 of 2 conditions have a target"):
        ConditionBatch.stack([found[0], whole[0]])


def test_a_lost_target_is_not_taken_for_a_pair(tmp_path: Path) -> None:
    paths = [tiny.shard(tmp_path / "a.tar", 3), tiny.shard(tmp_path / "b.tar", 3, first=3, targets=False)]
    with pytest.raises(UserError, match="are bad, the limit is 1: 2 missing part"):
        TripletShards(paths, needs_targets=False)


def test_jpeg_samples_are_read(tmp_path: Path) -> None:
    image = encoded(1, suffix="jpg")
    write_shard(tmp_path / "a.tar", [EncodedTriplet("k", image, image, image, META)])
    assert TripletShards([tmp_path / "a.tar"])[0].content.shape == (3, SIZE, SIZE)


def test_same_triplets_make_same_bytes_and_leave_nothing_else(tmp_path: Path) -> None:
    first, second = shard(tmp_path, name="a.tar"), shard(tmp_path, name="b.tar")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_failed_write_leaves_the_old_shard(tmp_path: Path) -> None:
    path = shard(tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="dot or slash"):
        write_shard(path, [triplet(0), EncodedTriplet("a.b", b"", b"", b"", META)])
    assert path.read_bytes() == before


def test_webdataset_reads_our_shards(tmp_path: Path) -> None:
    samples = list(wds.WebDataset(str(shard(tmp_path)), shardshuffle=False))
    assert [s["__key__"] for s in samples] == ["k000", "k001", "k002", "k003"]
    assert samples[1]["target.png"] == encoded(12)


def test_cache_returns_the_same_object(tmp_path: Path) -> None:
    path = shard(tmp_path)
    cached = TripletShards([path], cache=True)
    assert cached[1] is cached[1]
    plain = TripletShards([path])
    assert plain[1] is not plain[1]


def test_files_are_closed_with_their_reader(tmp_path: Path) -> None:
    files = ShardFiles([shard(tmp_path)])
    files.read(0, 0, 8)
    (descriptor,) = files._open.values()
    os.fstat(descriptor)
    del files
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_expand_shards(tmp_path: Path) -> None:
    a, b = shard(tmp_path, name="a.tar"), shard(tmp_path, name="b.tar", start=4)
    assert expand_shards([tmp_path / "*.tar", a]) == [a, b]
    with pytest.raises(UserError, match=r"no shard matches .*nowhere-\*\.tar"):
        expand_shards([tmp_path / "nowhere-*.tar"])


def test_missing_shard(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.tar does not exist"):
        TripletShards([tmp_path / "gone.tar"])


def test_file_that_is_no_tar(tmp_path: Path) -> None:
    path = tmp_path / "noise.tar"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(UserError, match=r"noise\.tar is not a whole, uncompressed tar"):
        TripletShards([path])


@pytest.mark.parametrize("where", ["inside a member", "between two members"])
def test_truncated_tar(tmp_path: Path, where: str) -> None:
    path = shard(tmp_path)
    with tarfile.open(path) as tar:
        member = tar.getmembers()[6]
    cut = member.offset_data + 100 if where == "inside a member" else member.offset
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"a\.tar is not a whole"):
        TripletShards([path])


def test_tar_with_a_damaged_header(tmp_path: Path) -> None:
    path = shard(tmp_path)
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[5].offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 512] = b"\xff" * 512
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tar is not a whole"):
        TripletShards([path])


def test_empty_tar(tmp_path: Path) -> None:
    write_shard(tmp_path / "empty.tar", [])
    with pytest.raises(UserError, match=r"no complete triplet in .*empty\.tar"):
        TripletShards([tmp_path / "empty.tar"])


def test_key_in_two_shards(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'k000' of .*b\\.tar is also in another shard"):
        TripletShards([shard(tmp_path, name="a.tar"), shard(tmp_path, name="b.tar")])


BAD_IMAGES = {
    "unreadable image": encoded(0)[:200],
    "not RGB": encoded(0, mode="L"),
    "wrong size": encoded(0, size=SIZE + 4),
}


@pytest.mark.parametrize(
    ("kind", "image"),
    [*BAD_IMAGES.items(), ("not RGB", encoded(0, mode="RGBA")), ("not RGB", encoded(0, mode="CMYK", suffix="jpg"))],
)
def test_bad_image_is_named_and_one_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, image: bytes
) -> None:
    shards = TripletShards([shard(tmp_path, style=image)], image_size=SIZE)
    with pytest.raises(BadSample, match=r"k000: style") as caught:
        shards[0]
    assert caught.value.kind == kind
    with caplog.at_level(logging.WARNING):
        shards.validate()
        assert shards.usable(0).key == "k001"
    assert sum("k000" in record.message for record in caplog.records) == 1


def test_sizes_that_differ_within_a_triplet(tmp_path: Path) -> None:
    with pytest.raises(BadSample, match="differ in size"):
        TripletShards([shard(tmp_path, style=encoded(0, size=SIZE + 4))])[0]


def test_too_many_bad_samples_are_counted_by_kind(tmp_path: Path) -> None:
    bad = [triplet(i, target=image) for i, image in enumerate(BAD_IMAGES.values())]
    write_shard(tmp_path / "a.tar", [*bad, triplet(9)])
    shards = TripletShards([tmp_path / "a.tar"], image_size=SIZE, max_bad_share=0.5)
    with pytest.raises(UserError, match="3 of 4 samples .* the limit is 2: 1 not RGB, 1 unreadable image, 1 wrong size"):
        shards.validate()


def test_of_very_many_bad_samples_only_some_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = [triplet(i, target=b"") for i in range(2 * LISTED)]
    write_shard(tmp_path / "a.tar", [*broken, triplet(2 * LISTED)])
    shards = TripletShards([tmp_path / "a.tar"], image_size=SIZE, max_bad_share=1.0)
    with caplog.at_level(logging.WARNING):
        shards.validate()
    assert len(caplog.records) == LISTED + 1
    assert "counted but not listed" in caplog.records[-1].message


def write_raw(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def raw_sample(key: str, leave_out: str = "", meta: bytes = json.dumps(META).encode()) -> dict[str, bytes]:
    parts = {"content.png": encoded(1), "style.png": encoded(2), "target.png": encoded(3), "json": meta}
    return {f"{key}.{part}": content for part, content in parts.items() if part != leave_out}


def test_missing_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_raw(tmp_path / "a.tar", raw_sample("good") | raw_sample("poor", leave_out="target.png"))
    with caplog.at_level(logging.WARNING):
        assert TripletShards([path]).keys == ("good",)
    assert "poor: no target" in caplog.text
    write_raw(path, raw_sample("p1", leave_out="json") | raw_sample("p2", leave_out="style.png") | raw_sample("good"))
    with pytest.raises(UserError, match="2 of 3 samples .* the limit is 1: 2 missing part"):
        TripletShards([path])


@pytest.mark.parametrize("meta", [b"{", b"[1]", b'{"dataset": "x"}', b"\xff"])
def test_bad_json(tmp_path: Path, meta: bytes) -> None:
    shards = TripletShards([write_raw(tmp_path / "a.tar", raw_sample("k", meta=meta))])
    with pytest.raises(BadSample) as caught:
        shards[0]
    assert caught.value.kind == "bad json"
    with pytest.raises(UserError, match="no usable triplet"):
        shards.validate()


def member(name: str, seed: int = 1) -> tuple[str, bytes]:
    """A member of somebody's own tar: a picture, or JSON if its name says so."""
    return name, json.dumps(META).encode() if name.endswith("json") else encoded(seed)


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def whole(key: str) -> list[tuple[str, bytes]]:
    return [member(f"{key}.{part}") for part in ("content.png", "style.png", "target.png", "json")]


def test_keys_of_any_script(tmp_path: Path) -> None:
    names = ["abc", "漢字", "café", "Ünï", "мир", "😀", "zzz"]
    path = tar_of(tmp_path / "a.tar", [m for name in names for m in whole(name)])
    shards = TripletShards([path], image_size=SIZE)
    assert list(shards.keys) == sorted(names)  # UTF-8 sorts as code points do
    assert [shards[i].key for i in range(len(shards))] == sorted(names)
    assert shards[0].content.shape == (3, SIZE, SIZE)


def test_a_key_whose_bytes_are_not_utf_8_becomes_text(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", whole(b"caf\xe9".decode("utf-8", "surrogateescape")))
    assert TripletShards([path]).keys == ("caf\\udce9",)


def test_keys_are_read_in_any_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar_of(tmp_path / "a.tar", whole("café"))
    monkeypatch.setattr(tarfile, "ENCODING", "iso8859-1")
    assert TripletShards([path]).keys == ("café",)


@pytest.mark.parametrize(
    ("written", "key"),
    [("./k", "k"), ("train/part.1/k", "train/part.1/k"), ("./v1.0/./k", "v1.0/k"), ("a/k", "a/k")],
)
def test_a_key_ends_at_the_first_dot_of_the_file_name(tmp_path: Path, written: str, key: str) -> None:
    assert TripletShards([tar_of(tmp_path / "a.tar", whole(written))]).keys == (key,)


def test_keys_that_differ_by_their_folder(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", whole("v.1/k") + whole("v.2/k"))
    assert TripletShards([path]).keys == ("v.1/k", "v.2/k")


@pytest.mark.parametrize("second", ["k.style.png", "./k.style.png", "k.style.jpg", "k.Style.PNG"])
def test_two_members_for_one_part_are_refused(tmp_path: Path, second: str) -> None:
    path = tar_of(tmp_path / "a.tar", [*whole("k"), member(second, 2)])
    with pytest.raises(UserError, match=r"a\.tar has a second style for key 'k'"):
        TripletShards([path])


def test_what_macos_adds_to_an_archive_is_no_sample(tmp_path: Path) -> None:
    extra = [("k/._a.content.png", b"\0"), ("__MACOSX/k/._a.content.png", b"\0"), ("._b.json", b"\0"), (".DS_Store", b"\0")]
    shards = TripletShards([tar_of(tmp_path / "a.tar", [*extra, *whole("k/a")])])
    assert shards.keys == ("k/a",)


@pytest.mark.parametrize("key", ["漢" * 40, "k" * 150])
def test_the_writer_says_where_parts_of_long_names_lie(tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.tar"
    with ShardWriter(path) as writer:
        places = writer.add(EncodedTriplet(key, encoded(1), encoded(2), encoded(3), META, "png"))
    assert index_shard(path) == {key: places}


def test_shards_in_a_folder_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9 [v1]")
    folder.mkdir()
    assert len(TripletShards([shard(folder)])) == 4
