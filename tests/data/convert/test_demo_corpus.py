"""The training corpus of the demo's models: what it may show, and that it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.convert import demo_photos
from data.convert.demo import KNOWN_STYLES, MAX_OVERLAP, held_out_pairing, load_photos, overlap
from data.convert.demo_corpus import GROUP, SHARD_GROUPS, CorpusPlan, Networks, build_corpus
from data.convert.demo_photos import Collection, listed, load_collection
from data.shards import TripletShards
from stylevar.errors import UserError

DEMO = Path(__file__).parents[3] / "data" / "demo"


@pytest.fixture(scope="module")
def corpus() -> CorpusPlan:
    def noise(mode: str, seed: int) -> Image.Image:
        values = np.random.default_rng(seed).integers(0, 256, (300, 280, len(mode)), dtype=np.uint8)
        return Image.fromarray(values, mode)

    collection = Collection(
        {f"photo{i}": noise("RGB", i) for i in range(4)}, {"painting": noise("RGB", 9)}, {"cutout": noise("RGBA", 8)}
    )
    return CorpusPlan(load_photos(DEMO / "photos"), collection, demo_seed=0)


def recolour(image: Image.Image, style: object) -> Image.Image:
    return image.convert("L").convert("RGB")


def test_no_crop_meets_a_held_out_one(corpus):
    name = next(name for name, held in corpus.held.items() if held)
    size = corpus.photographs[name].size
    rng = np.random.default_rng(0)
    for _ in range(200):
        side, left, top = corpus._crop(rng, name, size)
        box = (left, top, left + side, top + side)
        assert left >= 0
        assert left + side <= size[0]
        assert top + side <= size[1]
        assert all(overlap(box, held) < MAX_OVERLAP for held in corpus.held[name])


def test_held_out_pairings_and_novel_photographs_do_not_occur(corpus):
    novel = {photo.name for photo in load_photos(DEMO / "photos") if photo.novel}
    assert novel
    assert not novel & set(corpus.photographs)
    known = [photo for photo in load_photos(DEMO / "photos") if not photo.novel]
    for i, photo in enumerate(known):
        for j, style in enumerate(KNOWN_STYLES):
            if held_out_pairing(i, j):
                assert not corpus.allowed(photo.name, style)
                assert not corpus.allowed(photo.name, {**dict.fromkeys(style, 0.1), 25: 0.9})
    rng = np.random.default_rng(1)
    for _ in range(300):
        style = corpus.style(rng)
        assert isinstance(style, str) or not set(style) & {5, 12, 18, 24}
        assert isinstance(style, str) or sum(style.values()) == pytest.approx(1)


def test_a_build_goes_on_and_repeats_itself(corpus, tmp_path):
    networks = Networks(recolour, recolour)
    shard = GROUP * SHARD_GROUPS
    first = build_corpus(corpus, tmp_path / "a", 32, 3, shard, networks)
    made = first[0].stat().st_mtime_ns
    both = build_corpus(corpus, tmp_path / "a", 32, 3, shard + 1, networks)
    assert [path.name for path in both] == ["train-00000.tar", "train-00001.tar"]
    assert both[0].stat().st_mtime_ns == made
    again = build_corpus(corpus, tmp_path / "b", 32, 3, 1, networks)
    assert again[0].read_bytes() == first[0].read_bytes()
    triplets = TripletShards(both, image_size=32)
    triplets.validate()
    assert len(triplets) == 2 * shard
    for i in range(0, len(triplets), 37):
        meta = triplets.meta(i)
        assert meta["content_name"] != meta["style_photo"]


def test_every_listed_picture_has_an_author_and_a_licence():
    pictures = listed()
    assert len({picture.file for picture in pictures}) == len(pictures)
    for picture in pictures:
        assert picture.kind in demo_photos.KINDS
        assert all((picture.package, picture.path, picture.title, picture.author, picture.licence))


def test_a_folder_without_its_list_is_refused(tmp_path):
    with pytest.raises(UserError, match="launch/prepare.py photos"):
        load_collection(tmp_path)
    (tmp_path / "ATTRIBUTION.json").write_text(json.dumps({}))
    assert load_collection(tmp_path) == Collection({}, {}, {})
