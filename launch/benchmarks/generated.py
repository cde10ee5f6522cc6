"""Generated corpora in the formats of the real ones, for tests and the benchmark."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

CONTENT_NAMES = ("park_A park with trees {}.png", "café {}.v2.png", "漢字 {}.png", "a&&b {}.png")
STYLE_NAMES = ("s{:04d}____0926_01_query_0_img.jpeg.jpg", "style {} of é.jpg", "s{}&&x.jpg")


@dataclass(frozen=True)
class Written:
    """What a corpus contains: the number of usable triplets, and of rejects of each kind."""

    triplets: int
    rejects: Counter[str] = field(default_factory=Counter)


def picture(seed: int, size: int) -> Image.Image:
    """A smooth, colourful picture; equal seeds give equal ones."""
    rough = np.random.default_rng(seed).integers(0, 256, (size // 32 + 4, size // 32 + 4, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((size, size), Image.Resampling.BICUBIC)


def stylised(content: Image.Image, style: Image.Image) -> Image.Image:
    """A target that depends on both: the content's light in the style's colours."""
    return Image.blend(content.convert("L").convert("RGB"), style.resize((3, 3)).resize(content.size), 0.4)


def encoded(image: Image.Image, suffix: str) -> bytes:
    out = io.BytesIO()
    if suffix == "png":
        image.save(out, "PNG", compress_level=1)
    else:
        image.save(out, "JPEG", quality=92)
    return out.getvalue()


def bomb(side: int = 20_000) -> bytes:
    """A PNG of some kilobytes that unpacks to `side` x `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def write_omnistyle(
    folder: Path,
    contents: int,
    styles: int,
    targets: int,
    size: int,
    seed: int = 0,
    packed: bool = False,
    faults: bool = False,
) -> Written:
    """Write content, style and OmniStyle-150K, with file names like those of the real corpus, or worse.

    `packed` writes content.tar, style.tar and OmniStyle-150K.tar.part_aa ...; `faults` adds one of each fault.
    """
    if targets > contents * styles:
        raise ValueError(f"{targets} targets: {contents} contents x {styles} styles have only {contents * styles} pairs")
    content = [(CONTENT_NAMES[i % 4].format(i), picture(seed * 1000 + i, size)) for i in range(contents)]
    style = [(STYLE_NAMES[i % 3].format(i), picture(seed * 1000 + 500 + i, size)) for i in range(styles)]
    folder.mkdir(parents=True, exist_ok=True)
    rejects: Counter[str] = Counter()

    def made() -> Iterator[tuple[str, bytes]]:
        for n in range(targets):
            (c, c_image), (s, s_image) = content[n % contents], style[n // contents]
            suffix = ("png", "jpg")[n % 2]
            yield f"{c}&&{s}.{suffix}", encoded(stylised(c_image, s_image), suffix)
        if faults:
            whole = encoded(content[0][1], "png")
            known = f"{content[0][0]}&&{style[0][0]}"
            for name, data, kind in (
                (f"gone.png&&{style[0][0]}.png", whole, "missing content"),
                (f"{content[0][0]}&&gone.jpg.png", whole, "missing style"),
                (f"{known}.cut.png", whole, "missing style"),
                ("no separator.png", whole, "bad name"),
                (f"{known}.webp", whole[: len(whole) // 2], "unreadable image"),
                (f"{known}.tiff", bomb(), "too large"),
            ):
                rejects[kind] += 1
                yield name, data
            if packed:
                rejects["unsafe member"] += 1
                yield "../../out.png", whole

    if packed:
        (folder / "content.tar").write_bytes(_tar((f"content/{n}", encoded(i, "png")) for n, i in content))
        (folder / "style.tar").write_bytes(_tar((f"style/{n}", encoded(i, "jpg")) for n, i in style))
        whole = _tar((f"OmniStyle-150K/{name}" if not name.startswith("..") else name, data) for name, data in made())
        third = len(whole) // 3 + 100  # cut anywhere
        for number, suffix in enumerate(("aa", "ab", "ac")):
            (folder / f"OmniStyle-150K.tar.part_{suffix}").write_bytes(whole[number * third : (number + 1) * third])
    else:
        files = [*((f"content/{n}", encoded(i, "png")) for n, i in content)]
        files += [(f"style/{n}", encoded(i, "jpg")) for n, i in style]
        files += [(f"OmniStyle-150K/{name}", data) for name, data in made()]
        for name, data in files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
    return Written(targets, rejects)


def write_imagepulse(folder: Path, archives: int, triplets: int, size: int, seed: int = 0, faults: bool = False) -> Written:
    """`archives` files <timestamp>.tar.gz of `triplets` each; with `faults` the first has one of each, the last is cut."""
    folder.mkdir(parents=True, exist_ok=True)
    rejects: Counter[str] = Counter()
    total = archives * triplets
    for archive in range(archives):
        stamp = 1735000000 + archive
        files: dict[str, bytes] = {}
        for n in range(triplets):
            start = seed * 100_000 + (archive * triplets + n) * 2
            content, style = picture(start, size), picture(start + 1, size)
            for number, image in ((1, content), (2, style), (3, style), (4, stylised(content, style))):
                files[f"{stamp}/{n:04d}_{number}.png"] = encoded(image, "png")
            files[f"{stamp}/{n:04d}.json"] = json.dumps(_record(n)).encode()
        if faults and archive == 0:
            lacking = {k: v for k, v in _record(0).items() if k != "image_4"}
            files |= {f"{stamp}/no target.json": json.dumps(lacking).encode(), f"{stamp}/broken.json": b"{"}
            files[f"{stamp}/gone.json"] = json.dumps(_record(0) | {"image_2": "gone.png"}).encode()
            files[f"{stamp}/cut.png"] = files[f"{stamp}/0000_1.png"][:200]
            files[f"{stamp}/cut.json"] = json.dumps(_record(0) | {"image_4": "cut.png"}).encode()
            files["../../out.json"] = b"{}"
            rejects += Counter(["no image_4", "bad json", "missing style", "unreadable image", "unsafe member"])
        (folder / f"{stamp}.tar.gz").write_bytes(gzip.compress(_tar(files.items()), 1, mtime=0))
    return Written(total, rejects)


def _record(n: int) -> dict:
    return {
        **{f"image_{number}": f"images/{n:04d}_{number}.png" for number in (1, 2, 3, 4)},
        "style": "oil painting",
        "artifacts": {"blurred": n % 4 == 3, "watermark": False},
        "score": {"aesthetic": 4.0 + n % 3},
        "approved": True,
    }


def _tar(files: Iterable[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()
