"""Prepare a large generated corpus, with broken items and interruptions, and compare the results.

python tests/load/prepare.py --triplets 200000

The corpus has the form of OmniStyle-150K: three tars of small pictures. One item in a hundred is broken, in 20 ways. The
corpus is prepared twice: in one go, and with three interruptions at random points. Ends with 1 if a triplet is lost, if a
reject is not counted, or if the results differ.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).parents[2]
SIDE = 16
GOOD_TO_BAD = 99
DIFFERENT = 500
"""Number of different targets: all have names of their own, but drawing them all would take longer than to prepare them."""
STOPS = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data), "/etc/hostname" if kind == tarfile.SYMTYPE else ""
    return info, data


def encoded(seed: int, form: str = "PNG", mode: str = "RGB") -> bytes:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, form)
    return out.getvalue()


def claiming(side: int) -> bytes:
    """A PNG that claims side x side pixels and holds none."""
    chunks = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return chunks


def faults() -> list[tuple[str, str, bytes, bytes]]:
    """The 20 kinds of broken targets: (kind of reject, name with a place for a number, bytes, type of member)."""
    png, pair, file = encoded(1), "c0.png&&s0.png.", tarfile.REGTYPE
    return [
        ("missing content", "gone{}.png&&s0.png.png", png, file),
        ("missing style", "c0.png&&gone{}.png.png", png, file),
        ("bad name", "no separator {}.png", png, file),
        ("unreadable image", "cut.png&&s0.png.{}", png, file),
        ("too large", "c0.png&&huge.png.{}", png, file),
        ("unreadable image", pair + "empty{}", b"", file),
        ("unreadable image", pair + "text{}", b"no picture\n" * 9, file),
        ("unreadable image", pair + "half{}", png[: len(png) // 2], file),
        ("unreadable image", pair + "jpeg{}", encoded(1, "JPEG")[:300], file),
        ("unreadable image", pair + "gif{}", encoded(1, "GIF")[:10], file),
        ("unreadable image", pair + "nothing{}", claiming(SIDE), file),
        ("too large", pair + "large{}", claiming(9_000), file),
        ("too large", pair + "vast{}", claiming(2_000_000), file),
        ("not RGB", pair + "floats{}", encoded(1, "TIFF", "F"), file),
        ("unsafe member", pair + "link{}", b"", tarfile.SYMTYPE),
        ("unsafe member", pair + "device{}", b"", tarfile.CHRTYPE),
        ("unsafe member", pair + "pipe{}", b"", tarfile.FIFOTYPE),
        ("unsafe member", "../../" + pair + "{}", png, file),
        ("unsafe member", "/" + pair + "{}", png, file),
        ("same name twice", "c0.png&&s0.png.png", png, file),
    ]


def write_tar(path: Path, members: Iterable[Member]) -> None:
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))


def write_corpus(folder: Path, items: int) -> tuple[int, Counter[str]]:
    """Write `items` targets with their contents and styles. Returns the number of triplets, and of rejects by kind."""
    folder.mkdir()
    bad = items // (GOOD_TO_BAD + 1)
    good = items - bad
    contents = min(2000, -(-good // 10))
    styles = -(-good // contents)
    pictures = [encoded(seed) for seed in range(DIFFERENT)]
    kinds = faults()
    counted = Counter(kinds[number % len(kinds)][0] for number in range(bad))

    def targets() -> Iterator[Member]:
        for number in range(good):
            name = f"c{number % contents}.png&&s{number // contents}.png.png"
            yield member(name, pictures[number % DIFFERENT])
            if number % GOOD_TO_BAD == GOOD_TO_BAD - 1 and number // GOOD_TO_BAD < bad:
                at = number // GOOD_TO_BAD
                _, name, data, kind = kinds[at % len(kinds)]
                yield member(name.format(at), data, kind)

    cut, huge = member("cut.png", pictures[0][:100]), member("huge.png", claiming(9_000))
    write_tar(folder / "content.tar", [*(member(f"c{i}.png", encoded(1_000_000 + i)) for i in range(contents)), cut])
    write_tar(folder / "style.tar", [*(member(f"s{i}.png", encoded(2_000_000 + i)) for i in range(styles)), huge])
    write_tar(folder / "OmniStyle-150K.tar", targets())
    return good, counted


def command(source: Path, out: Path) -> list[str]:
    words = [sys.executable, ROOT / "launch/prepare.py", "omnistyle", source, "--out", out, "--size", SIDE, "--shard-mb", 20]
    return [str(word) for word in words]


def blocks_done(out: Path) -> int:
    parts = out / ".parts"
    names = [path.name for path in parts.iterdir()] if parts.is_dir() else []
    return sum(name.endswith(".parquet") and not name.endswith(".rejects.parquet") for name in names)


def interrupted(words: list[str], out: Path, blocks: int, seed: int) -> None:
    """Run the command; stop it at random numbers of finished blocks, the last time while it joins shards; run it again."""
    shares = sorted(random.Random(seed).uniform(0.02, 0.98) for _ in STOPS[1:])
    for stop, share in zip(STOPS, [*shares, None], strict=True):
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
            while program.poll() is None and not (
                blocks_done(out) >= share * blocks if share is not None else any(out.glob("*.tar"))
            ):
                time.sleep(0.05)
            program.send_signal(stop)
        where = "while it joined shards" if share is None else f"after {blocks_done(out)} of {blocks} blocks"
        print(f"{stop.name} {where}: exit code {program.returncode}", flush=True)
        if program.returncode == 0:
            sys.exit("it ended before it could be interrupted")
    subprocess.run(words, check=True)


def digests(out: Path) -> dict[str, str]:
    """{file: hash} of a prepared set."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir()) if path.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triplets", type=int, default=200_000, help="items of the corpus, broken ones included")
    parser.add_argument("--seed", type=int, default=0, help="of the points of interruption")
    parser.add_argument("--once", action="store_true", help="only prepare it in one go")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="prepare-"))
    try:
        good, bad = write_corpus(folder / "in", given.triplets)
        began = time.monotonic()
        subprocess.run(command(folder / "in", folder / "one"), check=True)
        seconds, used = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"{given.triplets} items in {seconds:.0f} s, {given.triplets / seconds:.0f} per second; "
            f"{used.ru_utime + used.ru_stime:.0f} s of CPU, at most {used.ru_maxrss / 1024:.0f} MiB in one process",
            flush=True,
        )
        keys = pq.read_table(folder / "one" / "manifest.parquet", columns=["target_name"])["target_name"].to_pylist()
        rejects = Counter(pq.read_table(folder / "one" / "rejects.parquet")["kind"].to_pylist())
        print(f"{len(set(keys))} of {good} triplets kept; rejects {dict(rejects)}")
        held = len(set(keys)) == len(keys) == good and rejects == bad
        if not given.once:
            interrupted(command(folder / "in", folder / "two"), folder / "two", -(-given.triplets // 100), given.seed)
            same = digests(folder / "one") == digests(folder / "two")
            print(f"interrupted {len(STOPS)} times: the result is {'identical' if same else 'different'}")
            held = held and same
    finally:
        shutil.rmtree(folder)
    if not held:
        sys.exit(f"expected {good} triplets and {dict(bad)}")


if __name__ == "__main__":
    main()
