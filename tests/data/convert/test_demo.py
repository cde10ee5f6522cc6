"""The committed demo set keeps its promises, and its builder works with a stand-in for the style network."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from data.convert import demo as builder
from data.convert import demo_sheet
from data.convert.demo import Photo, Style, build, load_photos, overlap, plan
from data.patterns import expand_shards
from data.shards import TripletShards
from stylevar.errors import UserError

DEMO = Path(__file__).parents[3] / "data" / "demo"
SETS = tuple(builder.COUNTS)


@cache
def demo(name: str) -> TripletShards:
    return TripletShards(expand_shards([DEMO / f"{name}-*.tar"]), image_size=80)


@cache
def metas(name: str) -> list[dict[str, Any]]:
    return [demo(name).meta(i) for i in range(len(demo(name)))]


def values(name: str, *fields: str) -> set[str]:
    return {meta[field] for meta in metas(name) for field in fields}


def test_counts_and_total_size() -> None:
    assert len(demo("train")) >= 1100
    assert {name: len(demo(name)) for name in ("heldout", "novel")} == {"heldout": 96, "novel": 64}
    assert sum(path.stat().st_size for path in DEMO.glob("*.tar")) < 10.5e6
    assert sum(path.stat().st_size for path in (DEMO / "photos").iterdir()) < 1.2e6


@pytest.mark.parametrize("name", SETS)
def test_every_sample_decodes(name: str, caplog: pytest.LogCaptureFixture) -> None:
    demo(name).validate()
    assert not caplog.records


def test_novel_shares_no_photograph_and_no_style() -> None:
    for known in ("train", "heldout"):
        assert not values("novel", "content_name", "style_photo") & values(known, "content_name", "style_photo")
        assert not values("novel", "style_name") & values(known, "style_name")
        assert not values("novel", "style_id") & values(known, "style_id")
    numbers = {n for style in values("train", "style_name") for n in style.removeprefix("magenta-").split("+")}
    assert not {style.removeprefix("magenta-") for style in values("novel", "style_name")} & numbers


def test_heldout_is_known_photographs_and_styles_in_new_pairings_and_crops() -> None:
    assert values("heldout", "content_name") <= values("train", "content_name")
    assert values("heldout", "style_name") <= values("train", "style_name")
    train_pairs = {(m["content_name"], m["style_name"]) for m in metas("train")}
    assert not train_pairs & {(m["content_name"], m["style_name"]) for m in metas("heldout")}
    crops = defaultdict(list)
    for meta in metas("train"):
        crops[meta["content_name"]].append(tuple(meta["crop"]))
    worst = max(overlap(tuple(m["crop"]), crop) for m in metas("heldout") for crop in crops[m["content_name"]])
    assert worst < builder.MAX_OVERLAP


def test_content_is_unique_over_all_sets() -> None:
    ids = Counter(meta["content_id"] for name in SETS for meta in metas(name))
    assert ids.most_common(1)[0][1] == 1


@pytest.mark.parametrize("name", SETS)
def test_style_reference_shows_another_photograph(name: str) -> None:
    assert all(meta["style_photo"] != meta["content_name"] for meta in metas(name))


def test_every_photograph_is_attributed() -> None:
    table = json.loads((DEMO / "photos" / "ATTRIBUTION.json").read_text(encoding="utf-8"))
    assert {path.stem for path in (DEMO / "photos").glob("*.jpg")} == set(table)
    assert values("train", "content_name") | values("novel", "content_name") == set(table)
    assert values("novel", "content_name") == {name for name, entry in table.items() if entry["novel"]}
    text = (DEMO / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert all(f"`{name}.jpg`" in text and entry["author"] in text for name, entry in table.items())


def test_plan_is_the_one_the_shards_were_made_by() -> None:
    pictures = plan(load_photos(DEMO / "photos"), builder.COUNTS, seed=0)
    for name in SETS:
        assert [p.content_id for p in pictures[name]] == [m["content_id"] for m in metas(name)]


def tint(image: Image.Image, style: Style) -> Image.Image:
    """Stands in for the network: a colour wash that differs from style to style."""
    number = sum(key * weight for key, weight in style.items())
    return ImageOps.colorize(image.convert("L"), (int(number * 9), 0, 90), (255, int(255 - number * 9), 200))


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    return load_photos(DEMO / "photos")


def test_build_is_deterministic_and_removes_stale_shards(tmp_path: Path, photos: list[Photo]) -> None:
    counts = {"train": 150, "heldout": 46, "novel": 16}
    few = [p for p in photos if not p.novel][:14] + [p for p in photos if p.novel][:2]
    (tmp_path / "b").mkdir()
    shutil.copy(DEMO / "novel-00000.tar", tmp_path / "b" / "novel-00007.tar")
    for out in "ab":
        build(few, tmp_path / out, 32, seed=5, stylise=tint, counts=counts)
    made = [{path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in "ab"]
    assert made[0] == made[1]
    assert set(made[0]) == {f"{name}-00000.tar" for name in counts}
    sets = {name: [tmp_path / "a" / f"{name}-00000.tar"] for name in counts}
    assert {name: len(TripletShards(paths, image_size=32)) for name, paths in sets.items()} == counts
    demo_sheet.write_sheet(sets, tmp_path / "runs" / "sheet.png", bands=2)
    assert Image.open(tmp_path / "runs" / "sheet.png").size == (22 * 32, (2 + 2 + 1) * (3 * 32 + 8))


def test_build_refuses_what_it_cannot_do(tmp_path: Path, photos: list[Photo]) -> None:
    known, novel = [p for p in photos if not p.novel], [p for p in photos if p.novel]
    with pytest.raises(UserError, match="size is 512: it must be 32 to 256"):
        build(photos, tmp_path, 512, seed=0, stylise=tint)
    counts = {"train": 0, "heldout": 0, "novel": 4}
    with pytest.raises(UserError, match="no photograph is left for the set novel"):
        build(known, tmp_path, 32, seed=0, stylise=tint, counts=counts)
    with pytest.raises(UserError, match="a style reference needs a second one"):
        build(novel[:1], tmp_path, 32, seed=0, stylise=tint, counts=counts)


def test_photographs_need_a_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ATTRIBUTION\.json cannot be read .*needed for the source of each photograph"):
        load_photos(tmp_path)
    table = tmp_path / "ATTRIBUTION.json"
    table.write_text('{"tiny": {"novel": false, "title": "", "author": "", "source": ""}}')
    with pytest.raises(UserError, match="tiny lacks licence"):
        load_photos(tmp_path)
    table.write_text('{"tiny": {"novel": false, "title": "", "author": "", "source": "", "licence": ""}}')
    Image.new("RGB", (300, 100)).save(tmp_path / "tiny.jpg")
    with pytest.raises(UserError, match="its short side must be at least 256 px"):
        load_photos(tmp_path)
