"""Archives of corpora, and shards, that are built to harm: nothing is written outside, and memory stays bounded."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from campaign import keeps_promises, tree

from data import tar_headers
from data.convert.source import SOURCE_BYTES
from data.manifest import SCHEMA
from data.patterns import expand_shards
from data.shard_writer import padded
from data.shards import BadSample, TripletShards
from data.tar_headers import HEADER_BYTES
from stylevar.errors import UserError

Change = Callable[[tarfile.TarFile], None]


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, io.BytesIO(data)


def a(name: str, **fields: object) -> Change:
    """A member of this name, an empty file unless `fields` say otherwise."""
    return lambda tar: tar.addfile(*member(name, **fields))


def very_many(tar: tarfile.TarFile) -> None:
    for number in range(3_000):
        tar.addfile(*member(f"more/{number}.png"))


def header_of_gigabytes(kind: bytes) -> Change:
    """The header of a long name (or of extended fields) that claims four gigabytes, with none of them there."""

    def write(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, 4 * 2**30
        assert tar.fileobj is not None
        tar.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))

    return write


MEMBERS: dict[str, Change] = {
    "a path above the archive": a("../../planted.png"),
    "an absolute path": a("/planted.png"),
    "a path with .. within": a("content/../../../planted.png"),
    "a symbolic link outside": a("content/link.png", type=tarfile.SYMTYPE, linkname="/etc/hostname"),
    "a hard link outside": a("content/hard.png", type=tarfile.LNKTYPE, linkname="/etc/hostname"),
    "a link to a folder and a file in it": a("content", type=tarfile.SYMTYPE, linkname="/tmp"),
    "a character device": a("content/null.png", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "a block device": a("content/disk.png", type=tarfile.BLKTYPE, devmajor=8),
    "a named pipe": a("content/pipe.png", type=tarfile.FIFOTYPE),
    "a name twice": a("content/a.png"),
    "a name of a thousand letters": a(f"content/{'x' * 1000}.png"),
    "a name with control characters": a("content/\x1b[2J\n.png"),
    "an empty name": a(""),
    "very many members": very_many,
    "a long name of gigabytes": header_of_gigabytes(tarfile.GNUTYPE_LONGNAME),
    "an extended header of gigabytes": header_of_gigabytes(tarfile.XHDTYPE),
    "a global header of gigabytes": header_of_gigabytes(tarfile.XGLTYPE),
}


def packed(files: dict[str, bytes], change: Change) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            tar.addfile(*member(name, data))
        change(tar)
    return out.getvalue()


ROLES = ("content", "style", "target")


def prepares(tmp_path: Path, kind: str, source: Path, says: tuple[str, ...] = ()) -> None:
    """`prepare.py` keeps the sound triplet and its promises; what it rejects is listed with a reason."""
    out = tmp_path / "out"
    words = [kind, source, "--out", out, "--size", 16, "--workers", 1, "--max-reject-share", 1]
    ending = keeps_promises(tmp_path, "prepare", words, says, (0, 2), [out])
    if ending.code == 0:
        assert pq.read_metadata(out / "manifest.parquet").num_rows == 1
    for reason in pq.read_table(out / "rejects.parquet")["reason"].to_pylist() if (out / "rejects.parquet").exists() else ():
        assert reason


@pytest.mark.parametrize("name", MEMBERS)
def test_archives_of_omnistyle(tmp_path, name):
    source = tmp_path / "in"
    source.mkdir()
    (source / "content.tar").write_bytes(packed({"content/a.png": tiny.png(1, 20)}, MEMBERS[name]))
    (source / "style.tar").write_bytes(packed({"style/b.png": tiny.png(2, 20)}, lambda tar: None))
    target = packed({"OmniStyle-150K/a.png&&b.png.png": tiny.png(3, 20)}, lambda tar: None)
    (source / "OmniStyle-150K.tar").write_bytes(target)
    prepares(tmp_path, "omnistyle", source)


RECORD = {"image_1": "content.png", "image_2": "style.png", "image_4": "target.png"}


def pulse(tmp_path: Path, change: Change, **more: bytes) -> Path:
    source = tmp_path / "in"
    source.mkdir()
    files = {"1.json": json.dumps(RECORD).encode()} | {f"{role}.png": tiny.png(n, 20) for n, role in enumerate(ROLES)}
    (source / "1700000000.tar.gz").write_bytes(gzip.compress(packed(files | more, change), 1))
    return source


@pytest.mark.parametrize("name", MEMBERS)
def test_archives_of_imagepulse(tmp_path, name):
    prepares(tmp_path, "imagepulse", pulse(tmp_path, MEMBERS[name]))


JSONS = {
    "an endless nest": b"[" * 100_000,
    "a number of 400 digits": json.dumps(RECORD | {"score": 0}).encode().replace(b": 0", b": " + b"9" * 400),
    "a path outside": json.dumps(RECORD | {"image_1": "../../../etc/passwd"}).encode(),
    "numbers for names": json.dumps(RECORD | {"image_1": 5}).encode(),
    "a list": b"[]",
    "binary": b"\xff\xfe\x00",
    "nothing": b"",
}


@pytest.mark.parametrize("name", JSONS)
def test_records_of_imagepulse(tmp_path, name):
    prepares(tmp_path, "imagepulse", pulse(tmp_path, lambda tar: None, **{"2.json": JSONS[name]}))


@pytest.mark.slow  # it compresses and unpacks more than half a gigabyte
def test_a_compressed_archive_that_unpacks_to_a_picture_of_gigabytes(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    with gzip.open(source / "1.tar.gz", "wb", 1) as file:
        info = tarfile.TarInfo("content.png")
        info.size = SOURCE_BYTES + 1
        file.write(info.tobuf())
        block = bytes(2**20)
        for _ in range(SOURCE_BYTES // len(block) + 1):
            file.write(block)
        file.write(packed({"1.json": json.dumps(RECORD).encode()}, lambda tar: None))
    words = ["imagepulse", source, "--out", tmp_path / "out", "--workers", 1]
    keeps_promises(tmp_path, "prepare", words, ["rejected"], (2,), [tmp_path / "out"])


def test_a_picture_of_gigabytes_in_a_folder(tmp_path):
    for number, role in enumerate(ROLES):
        (tmp_path / "in" / role).mkdir(parents=True)
        (tmp_path / "in" / role / "a.png").write_bytes(tiny.png(number, 20))
    with (tmp_path / "in" / "content" / "b.png").open("wb") as file:
        file.truncate(4 * 2**30)
    for role in ("style", "target"):
        (tmp_path / "in" / role / "b.png").write_bytes(tiny.png(7, 20))
    prepares(tmp_path, "folder", tmp_path / "in")


@pytest.mark.parametrize("more", [0, 1])
def test_an_archive_of_very_many_members(tmp_path, monkeypatch, more):
    """As a corpus and as a shard: at the limit it is read, beyond it is refused."""
    monkeypatch.setattr(tar_headers, "MEMBERS", 3_001)
    source = tmp_path / "in"
    source.mkdir()
    roles = {"content": "content/a.png", "style": "style/b.png", "OmniStyle-150K": "OmniStyle-150K/a.png&&b.png.png"}
    for number, (role, name) in enumerate(roles.items()):
        (source / f"{role}.tar").write_bytes(packed({name: tiny.png(number, 20)}, lambda tar: None))

    def many(tar: tarfile.TarFile) -> None:
        very_many(tar)
        for number in range(more):
            a(f"one more {number}")(tar)

    (source / "content.tar").write_bytes(packed({"content/a.png": tiny.png(1, 20)}, many))
    words = ["omnistyle", source, "--out", tmp_path / "out", "--size", 16, "--workers", 1]
    says = ["content.tar has more than 3,001 members: unpack it into a folder"] if more else []
    keeps_promises(tmp_path, "prepare", words, says, (2,) if more else (0,), [tmp_path / "out"])

    shard = tmp_path / "in" / "a.tar"
    monkeypatch.setattr(tar_headers, "MEMBERS", 3_004)
    shard.write_bytes(packed(triplet("t"), many))
    with pytest.raises(UserError, match="a.tar has more than 3,004 members") if more else contextlib.nullcontext():
        assert read_all(shard) == {}


def test_archives_are_counted_before_they_are_read(tmp_path, monkeypatch):
    """And whatever they claim, the count ends."""
    monkeypatch.setattr(tar_headers, "MEMBERS", 3_001)
    archives = {name: io.BytesIO(packed({"a.png": tiny.png(1, 20)}, change)) for name, change in MEMBERS.items()}
    sizes = (b"99", b"\x80\0\1", b"-1", b"\xb2")
    archives |= {f"size {size!r}": io.BytesIO(bytes(124) + size + bytes(600)) for size in sizes}
    for file in archives.values():
        tar_headers.check_number(file)
        assert file.tell() == 0
    file = io.BytesIO(packed({"a.png": tiny.png(1, 20), "b.png": b""}, very_many))
    with pytest.raises(tar_headers.TooManyMembers):
        tar_headers.check_number(file)


def test_a_manifest_that_claims_millions_of_rows(tmp_path):
    count = 1_000_000
    text, number = pa.array(["a"]).take(pa.array([0] * count)), pa.array([512] * count)
    columns = {field.name: text if field.type == pa.string() else number for field in SCHEMA}
    columns |= {field.name: pa.nulls(count, field.type) for field in SCHEMA if pa.types.is_map(field.type)}
    pq.write_table(pa.table(columns), tmp_path / "manifest.parquet")
    keeps_promises(tmp_path, "prepare", ["check", tmp_path], ["manifest.parquet cannot be read", "claims 1,000,000 rows"])


META = {"dataset": "x", "content_id": 0, "style_id": 0, "content_name": "c", "style_name": "s"}


def triplet(key: str) -> dict[str, bytes]:
    return {f"{key}.{role}.png": tiny.png(n) for n, role in enumerate(ROLES)} | {f"{key}.json": json.dumps(META).encode()}


def read_all(shard: Path) -> dict[str, str]:
    """Read every triplet; the kinds of those that are bad, by key. UserError if the shard is refused."""
    triplets = TripletShards(expand_shards([shard]), max_bad_share=1.0)
    bad = {}
    for number in range(len(triplets)):
        try:
            triplets[number]
        except BadSample as error:
            bad[error.key] = error.kind
    return bad


@pytest.mark.parametrize("name", MEMBERS)
def test_shards(tmp_path, name):
    (tmp_path / "in").mkdir()
    shard = tmp_path / "in" / "a.tar"
    shard.write_bytes(packed(triplet("t"), MEMBERS[name]))
    before = tree(tmp_path)
    with contextlib.suppress(UserError):
        assert read_all(shard) == {}
    assert tree(tmp_path) == before


def test_shards_with_a_picture_of_gigabytes(tmp_path):
    shard = tmp_path / "a.tar"
    vast = tarfile.TarInfo("v.content.png")
    vast.size = 4 * 2**30
    rest = {name: data for name, data in triplet("v").items() if "content" not in name}
    with shard.open("wb") as file:
        file.write(packed(triplet("t"), lambda tar: None)[: sum(512 + padded(len(data)) for data in triplet("t").values())])
        file.write(vast.tobuf(tarfile.GNU_FORMAT))
        file.seek(vast.size, 1)  # nothing is written there, and nothing takes space
        file.write(packed(rest, lambda tar: None))
    assert read_all(shard) == {"v": "too large"}


@pytest.mark.parametrize("size", [HEADER_BYTES - 600_000, HEADER_BYTES + 1])
def test_headers_have_a_limit(tmp_path, size):
    source = tmp_path / "in"
    source.mkdir()
    (source / "content.tar").write_bytes(packed({"content/a.png": tiny.png(1, 20)}, a("content/" + "x" * size)))
    (source / "style.tar").write_bytes(packed({"style/b.png": tiny.png(2, 20)}, lambda tar: None))
    target = packed({"OmniStyle-150K/a.png&&b.png.png": tiny.png(3, 20)}, lambda tar: None)
    (source / "OmniStyle-150K.tar").write_bytes(target)
    prepares(tmp_path, "omnistyle", source)
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet")["kind"].to_pylist()
    assert ("damaged archive" in rejects) == (size > HEADER_BYTES)
