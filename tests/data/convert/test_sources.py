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


LITTER = ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "ehthumbs.db")


def test_what_desktops_leave_in_folders_is_no_picture_and_no_reject(tmp_path):
    for role in ("content", "style", "target"):
        (tmp_path / role).mkdir()
        for name in ("a.png", *LITTER):
            (tmp_path / role / name).write_bytes(role.encode())
        mac = tmp_path / "__MACOSX" / role
        mac.mkdir(parents=True)
        (mac / "a.png").touch()
    assert read(folder.blocks(tmp_path, 5)) == ([(b"content", b"style", b"target")], {})
    assert len(read(folder.pair_blocks(tmp_path / "content", tmp_path / "style", 1, 0, 2))[0]) == 1


def test_what_desktops_leave_in_archives_is_no_picture_and_no_reject(tmp_path):
    litter = {f"d/{name}": b"\0" for name in LITTER} | {"__MACOSX/d/._1.json": b"\0", "__MACOSX/d/a.png": b"\0"}
    record = json.dumps({"image_1": "a.png", "image_2": "b.png", "image_4": "c.png"}).encode()
    files = {"d/._1.json": b"\0", "d/1.json": record, "d/a.png": b"a", "d/b.png": b"b", "d/c.png": b"c"}
    (tmp_path / "1700000000.tar.gz").write_bytes(tar_bytes(litter | files, "w:gz"))
    (tmp_path / "._1700000000.tar.gz").write_bytes(b"\0")
    assert read(imagepulse.blocks(tmp_path)) == ([(b"a", b"b", b"c")], {})
    for name, data in {"content": b"c", "style": b"s"}.items():
        (tmp_path / f"{name}.tar").write_bytes(tar_bytes({f"{name}/a.png": data, f"{name}/._a.png": b"\0"}))
    (tmp_path / "target.tar").write_bytes(tar_bytes({"target/a.png&&a.png.png": b"t", "target/._a.png&&a.png.png": b"\0"}))
    assert read(omnistyle.blocks(tmp_path, 5)) == ([(b"c", b"s", b"t")], {})


def test_links_to_folders_are_followed_and_circles_are_not(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(b"x")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path)
    (tmp_path / "set").mkdir()
    for role in ("content", "style", "target"):
        (tmp_path / "set" / role).symlink_to(tmp_path / "elsewhere")
    pictures, _ = read(folder.blocks(tmp_path / "set", 5))
    assert (b"x", b"x", b"x") in pictures


def test_of_two_members_with_one_name_the_second_is_rejected(tmp_path):
    def twice(name: str, files: dict[str, bytes], mode: str = "w") -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode) as tar:
            for member, data in [*files.items(), (name, b"another")]:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return out.getvalue()

    source = omnistyle_source(tmp_path, {f"été.png&&{STYLE}.jpg": b"t"})
    (source / "content.tar").write_bytes(twice("./content/été.png", {"content/été.png": b"e"}))
    assert read(omnistyle.blocks(source, 9)) == ([(b"e", b"s", b"t")], {"content/été.png": "same name twice"})
    (tmp_path / "pulse").mkdir()
    record = json.dumps({"image_1": "a.png", "image_2": "b.png", "image_4": "c.png"}).encode()
    files = {"1.json": record, "a.png": b"a", "b.png": b"b", "c.png": b"c"}
    (tmp_path / "pulse" / "1.tar.gz").write_bytes(twice("a.png", files, "w:gz"))
    assert read(imagepulse.blocks(tmp_path / "pulse")) == ([(b"a", b"b", b"c")], {"a.png": "same name twice"})


def test_archives_of_any_name_get_keys_of_their_own(tmp_path):
    for name in ("漢字", "漢子", "x" * 200, "x" * 201, "1700000000", "my set"):
        (tmp_path / f"{name}.tar.gz").write_bytes(tar_bytes({}, "w:gz"))
    names = [block.name for block in imagepulse.blocks(tmp_path)]
    assert len(set(names)) == 6
    assert max(map(len, names)) <= len("imagepulse-") + 40
    assert {"imagepulse-1700000000", "imagepulse-my_set"} < set(names)
