"""Shards: what is written comes back, and every way a shard can be wrong is told apart."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image

from data.shard_writer import EncodedTriplet, write_shard
from data.shards import BadSample, TripletShards, expand_shards
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
    with pytest.raises(UserError, match="3 of 4 samples .* 2 allowed: 1 not RGB, 1 unreadable image, 1 wrong size"):
        shards.validate()


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
    with pytest.raises(UserError, match="2 of 3 samples .* 1 allowed: 2 missing part"):
        TripletShards([path])


@pytest.mark.parametrize("meta", [b"{", b"[1]", b'{"dataset": "x"}', b"\xff"])
def test_bad_json(tmp_path: Path, meta: bytes) -> None:
    shards = TripletShards([write_raw(tmp_path / "a.tar", raw_sample("k", meta=meta))])
    with pytest.raises(BadSample) as caught:
        shards[0]
    assert caught.value.kind == "bad json"
    with pytest.raises(UserError, match="no usable triplet"):
        shards.validate()
