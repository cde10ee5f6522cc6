"""The demo's training corpus: any number of triplets from collected pictures, for training the demo's models.

It is built, never committed. A group is `GROUP` scenes in one style; each scene is the style reference of another. A
scene is a crop of a photograph, or some cut-outs in front of one. There are three kinds of style: those of the demo set,
random blends of them, and paintings, through the network that accepts any picture as a style.

The corpus is disjoint from the demo's held-out sets: no crop overlaps a held-out crop of the same photograph by
`MAX_OVERLAP` or more, it has no held-out pairing of photograph and style (nor a blend with such a style), and it has
none of the photographs and styles of `novel`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from data.convert.demo import (
    COUNTS,
    KNOWN_STYLES,
    MAX_OVERLAP,
    STYLISE_SIZE,
    Box,
    Photo,
    Style,
    Styliser,
    digest,
    held_out_pairing,
    load_network,
    overlap,
    plan,
    style_name,
)
from data.convert.demo_photos import Collection
from data.shard_writer import EncodedTriplet, write_shard
from stylevar.errors import UserError

GROUP = 4
SHARD_GROUPS = 64
STYLE_SHARES = {"known": 0.6, "blend": 0.22, "painting": 0.18}
"""Probabilities that a group's style is one of the demo set's, a random blend of them, or a painting's."""
COLLAGE_SHARE = 0.35
"""Share of the scenes with cut-outs in front."""
SMALLEST_CROP = 0.4
"""Smallest side of a crop, as a share of the photograph's short side."""
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Networks:
    """The style networks: for numbered styles, and for the style of any painting."""

    numbered: Styliser
    painting: Callable[[Image.Image, Image.Image], Image.Image]


def load_networks(threads: int) -> Networks:
    """The pretrained networks, on the CPU. UserError if their package is missing."""
    network = load_network(threads)
    return Networks(lambda image, style: network.stylize(image, style=style), network.stylize_with)


@dataclass(frozen=True)
class Scene:
    """A square picture of side `STYLISE_SIZE`, its background photograph, and its identity."""

    image: Image.Image
    photo: str
    id: str


class CorpusPlan:
    """Draws scenes and styles. All random numbers of a shard depend only on (seed, shard number)."""

    def __init__(self, demo: Sequence[Photo], collection: Collection, demo_seed: int) -> None:
        """`demo`: the photographs of the demo set; its held-out crops follow from `demo_seed`."""
        known = [photo for photo in demo if not photo.novel]
        self.collection = collection
        self.photographs = {photo.name: photo.image for photo in known} | dict(collection.photographs)
        if clash := {photo.name for photo in demo} & set(collection.photographs):
            raise UserError(f"the photographs {sorted(clash)} are also in the demo set: rename them")
        self.held: dict[str, list[Box]] = {photo.name: [] for photo in known}
        for picture in plan(demo, COUNTS, demo_seed)["heldout"]:
            self.held[picture.photo.name].append(picture.box)
        self.reserved = {
            photo.name: [style for j, style in enumerate(KNOWN_STYLES) if held_out_pairing(i, j)]
            for i, photo in enumerate(known)
        }

    def style(self, rng: np.random.Generator) -> Style | str:
        """Draw a style: weights of numbered styles, or the name of a painting."""
        kind = rng.choice(list(STYLE_SHARES), p=list(STYLE_SHARES.values()))
        if kind == "painting" and self.collection.paintings:
            return str(rng.choice(list(self.collection.paintings)))
        if kind == "known":
            return KNOWN_STYLES[rng.integers(len(KNOWN_STYLES))]
        single = [next(iter(style)) for style in KNOWN_STYLES if len(style) == 1]
        count = int(rng.integers(2, 4))
        numbers = sorted(int(n) for n in rng.choice(single, count, replace=False))
        weights = rng.dirichlet([2.0] * count).round(2)
        weights[-1] = 1 - weights[:-1].sum()
        return {number: float(weight) for number, weight in zip(numbers, weights, strict=True)}

    def allowed(self, photo: str, style: Style | str) -> bool:
        """Whether the demo set does not hold out this pairing."""
        if isinstance(style, str):
            return True
        return not any(set(style) & set(reserved) for reserved in self.reserved.get(photo, []))

    def scene(self, rng: np.random.Generator, style: Style | str, without: Sequence[str]) -> Scene:
        """Draw a scene whose photograph is allowed with `style` and not in `without`."""
        names = [name for name in self.photographs if name not in without and self.allowed(name, style)]
        name = str(rng.choice(names))
        image = self.photographs[name]
        side, left, top = self._crop(rng, name, image.size)
        square = image.crop((left, top, left + side, top + side))
        square = square.resize((STYLISE_SIZE, STYLISE_SIZE), Image.Resampling.LANCZOS)
        identity = f"{name} {(left, top, side)}"
        if self.collection.cutouts and rng.random() < COLLAGE_SHARE:
            square, pasted = self._collage(rng, square)
            identity += f" {pasted}"
        if rng.random() < 0.5:
            square, identity = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT), identity + " mirrored"
        return Scene(square, name, digest(identity))

    def _crop(self, rng: np.random.Generator, name: str, size: tuple[int, int]) -> tuple[int, int, int]:
        short = min(size)
        for _ in range(1000):
            side = int(rng.integers(int(SMALLEST_CROP * short), short + 1))
            left, top = int(rng.integers(size[0] - side + 1)), int(rng.integers(size[1] - side + 1))
            box = (left, top, left + side, top + side)
            if all(overlap(box, held) < MAX_OVERLAP for held in self.held.get(name, [])):
                return side, left, top
        raise UserError(f"photograph {name} has no room for a crop away from the held-out ones: leave it out")

    def _collage(self, rng: np.random.Generator, background: Image.Image) -> tuple[Image.Image, str]:
        """Paste one to three cut-outs onto a background, which is blurred half of the time."""
        canvas = background.filter(ImageFilter.GaussianBlur(6)) if rng.random() < 0.5 else background.copy()
        pasted = []
        for _ in range(int(rng.integers(1, 4))):
            name = str(rng.choice(list(self.collection.cutouts)))
            cutout = self.collection.cutouts[name]
            scale = STYLISE_SIZE * rng.uniform(0.35, 0.95) / max(cutout.size)
            cutout = cutout.resize((max(1, round(cutout.width * scale)), max(1, round(cutout.height * scale))))
            cutout = cutout.rotate(float(rng.normal(0, 8)), Image.Resampling.BICUBIC, expand=True)
            if rng.random() < 0.5:
                cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            left = int(rng.integers(-cutout.width // 4, STYLISE_SIZE - 3 * cutout.width // 4))
            top = int(rng.integers(-cutout.height // 4, STYLISE_SIZE - 3 * cutout.height // 4))
            canvas.paste(cutout, (left, top), cutout)
            pasted.append(f"{name} {(left, top, cutout.size)}")
        return canvas, "; ".join(pasted)


def build_corpus(corpus: CorpusPlan, out: Path, size: int, seed: int, count: int, networks: Networks) -> list[Path]:
    """Write at least `count` triplets as `out/train-NNNNN.tar`; returns the shards.

    Existing shards are kept: an interrupted build continues, and a larger `count` adds to a smaller one.
    """
    per_shard = GROUP * SHARD_GROUPS
    paths = [out / f"train-{shard:05d}.tar" for shard in range(-(-count // per_shard))]
    missing = [(shard, path) for shard, path in enumerate(paths) if not path.is_file()]
    with tqdm(total=count, initial=(len(paths) - len(missing)) * per_shard, unit="image", desc="stylising") as bar:
        for shard, path in missing:
            rng = np.random.default_rng((seed, shard))
            groups = [_group(corpus, rng, f"{shard:05d}-{g:03d}", size, networks, bar) for g in range(SHARD_GROUPS)]
            write_shard(path, [triplet for group in groups for triplet in group])
    return paths


def _group(
    corpus: CorpusPlan, rng: np.random.Generator, name: str, size: int, networks: Networks, bar: tqdm
) -> list[EncodedTriplet]:
    style = corpus.style(rng)
    scenes: list[Scene] = []
    for _ in range(GROUP):
        scenes.append(corpus.scene(rng, style, [scene.photo for scene in scenes]))
    if isinstance(style, str):
        label, painting = f"painting {style}", corpus.collection.paintings[style]
        stylised = [networks.painting(scene.image, painting) for scene in scenes]
    else:
        label = style_label(style)
        stylised = [networks.numbered(scene.image, style) for scene in scenes]
    targets = [_encoded(image, size) for image in stylised]
    triplets = []
    for i, scene in enumerate(scenes):
        other = (i + 1) % GROUP
        meta = {
            "dataset": "demo-corpus",
            "content_id": scene.id,
            "style_id": digest(label),
            "content_name": scene.photo,
            "style_name": label,
            "style_photo": scenes[other].photo,
        }
        key = f"corpus_{name}-{i}"
        triplets.append(EncodedTriplet(key, _encoded(scene.image, size), targets[other], targets[i], meta))
        bar.update()
    return triplets


def style_label(style: Mapping[int, float]) -> str:
    """The name of a style in the demo set, or a name with the weights of a random blend."""
    if dict(style) in KNOWN_STYLES:
        return style_name(dict(style))
    return "magenta-" + "+".join(f"{number:02d}x{weight:.2f}" for number, weight in sorted(style.items()))


def _encoded(image: Image.Image, size: int) -> bytes:
    buffer = io.BytesIO()
    image.resize((size, size), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
