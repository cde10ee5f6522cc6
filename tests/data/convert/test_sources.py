"""The corpora's own formats, as they are distributed, become triplets and rejects with a reason."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

from data.convert import folder, imagepulse, omnistyle
from data.convert.archive import TAR_BLOCK
from data.convert.source import Block, RawTriplet, Reject


def tar_bytes(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def read(blocks: list[Block]) -> tuple[list[tuple[bytes, ...]], dict[str, str]]:
    items = [item for block in blocks for item in block.read()]
    triplets = [i for i in items if isinstance(i, RawTriplet)]
    pictures = [tuple(p.read() for p in (t.content, t.style, t.target) if p is not None) for t in triplets]
    return pictures, {i.name: i.kind for i in items if isinstance(i, Reject)}


STYLE = "s0415____0926_01_query_0_img.jpeg.jpg"


def omnistyle_source(path: Path, targets: dict[str, bytes]) -> Path:
    (path / "content.tar").write_bytes(tar_bytes({"content/park_A park with trees.png": b"c", "content/été.png": b"e"}))
    (path / "style").mkdir()
    (path / "style" / STYLE).write_bytes(b"s")
    whole = tar_bytes({f"OmniStyle-150K/{name}": data for name, data in targets.items()})
    cut = len(whole) // 3  # in the middle of a member
    for suffix, part in (("aa", whole[:cut]), ("ab", whole[cut:])):
        (path / f"OmniStyle-150K.tar.part_{suffix}").write_bytes(part)
    return path


def test_omnistyle_reads_split_archives_and_its_own_names(tmp_path):
    targets = {
        f"park_A park with trees.png&&{STYLE}.png": b"t1" * 3000,
        f"été.png&&{STYLE}.jpg": b"t2",
        f"gone.png&&{STYLE}.png": b"",
        "été.png&&gone.jpg.png": b"",
        "no separator.png": b"",
    }
    pictures, rejects = read(omnistyle.blocks(omnistyle_source(tmp_path, targets), 2))
    assert sorted(pictures) == [(b"c", b"s", b"t1" * 3000), (b"e", b"s", b"t2")]
    assert sorted(rejects.values()) == ["bad name", "missing content", "missing style"]


def test_a_cut_archive_gives_what_it_has_and_says_so(tmp_path):
    source = omnistyle_source(tmp_path, {f"été.png&&{STYLE}.jpg": b"t", f"park_A park with trees.png&&{STYLE}.png": b"u"})
    last = source / "OmniStyle-150K.tar.part_ab"
    last.write_bytes(last.read_bytes()[:1])
    assert "damaged archive" in read(omnistyle.blocks(source, 9))[1].values()


def test_of_two_files_with_one_name_the_second_is_rejected(tmp_path):
    source = omnistyle_source(tmp_path, {f"été.png&&{STYLE}.jpg": b"t"})
    (source / "style" / "z").mkdir()
    (source / "style" / "z" / STYLE).write_bytes(b"another")
    pictures, rejects = read(omnistyle.blocks(source, 9))
    assert pictures == [(b"e", b"s", b"t")]
    assert rejects == {f"z/{STYLE}": "same name twice"}


def test_a_cut_anywhere_in_a_compressed_archive_is_reported(tmp_path):
    noise = random.Random(0)
    files = {f"{i}.png": noise.randbytes(700) for i in range(3)}
    files["1.json"] = json.dumps({"image_1": "0.png", "image_2": "1.png", "image_4": "2.png"}).encode()
    plain = tar_bytes(files)
    member_ends = range(0, len(plain) - 2 * TAR_BLOCK, TAR_BLOCK)
    for cut in member_ends:
        (tmp_path / "1.tar.gz").write_bytes(gzip.compress(plain[:cut]))
        _, rejects = read(imagepulse.blocks(tmp_path))
        whole = plain[cut : cut + TAR_BLOCK] == bytes(TAR_BLOCK) and plain[cut - TAR_BLOCK : cut] == bytes(TAR_BLOCK)
        assert whole or rejects["1.tar.gz"] == "damaged archive"
    packed = gzip.compress(plain)
    for cut in range(0, len(packed) * 3 // 4, 97):
        (tmp_path / "1.tar.gz").write_bytes(packed[:cut])
        assert read(imagepulse.blocks(tmp_path))[1]["1.tar.gz"] == "damaged archive"


def test_imagepulse_joins_what_its_json_files_name(tmp_path):
    def record(**changes: object) -> bytes:
        names = {"image_1": "x/a.png", "image_2": "x/b.png", "image_4": "x/c.png"}
        return json.dumps({**names, "flags": {"blurred": True}, "score": 3, **changes}).encode()

    files = {"d/a.png": b"a", "d/1.json": record(), "d/b.png": b"b", "d/2.json": record(image_4=None), "d/3.json": b"{"}
    files |= {"d/4.json": record(image_1="none.png"), "d/c.png": b"c", "../out.json": record()}
    (tmp_path / "1700000000.tar.gz").write_bytes(tar_bytes(files, "w:gz"))
    blocks = imagepulse.blocks(tmp_path)
    pictures, rejects = read(blocks)
    assert pictures == [(b"a", b"b", b"c")]
    assert rejects == {
        "d/2.json": "no image_4",
        "d/3.json": "bad json",
        "d/4.json": "missing content",
        "../out.json": "unsafe member",
    }
    triplet = next(item for item in blocks[0].read() if isinstance(item, RawTriplet))
    assert (triplet.flags, triplet.scores) == ({"flags.blurred": True}, {"score": 3.0})


def test_both_layouts_of_folders(tmp_path):
    for path in ("content/a.png", "style/a.jpg", "target/a.png", "0000001/content.png", "0000001/style.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(path.encode())
    pictures, rejects = read(folder.blocks(tmp_path, 5))
    assert pictures == [(b"content/a.png", b"style/a.jpg", b"target/a.png")]
    assert rejects == {"0000001": "missing target"}
    (tmp_path / "style" / "a.png").write_bytes(b"which?")
    pictures, rejects = read(folder.blocks(tmp_path, 5))
    assert pictures == [(b"content/a.png", b"style/a.jpg", b"target/a.png")]
    assert rejects == {"0000001": "missing target", "style/a.png": "same name twice"}


def test_pairs_are_different_and_the_same_every_time(tmp_path):
    for role in ("c", "s"):
        (tmp_path / role).mkdir()
        for i in range(3):
            (tmp_path / role / f"{i}.png").write_bytes(f"{role}{i}".encode())
    first, second = (read(folder.pair_blocks(tmp_path / "c", tmp_path / "s", 5, 0, 2))[0] for _ in range(2))
    assert first == second
    assert len(set(first)) == 5
