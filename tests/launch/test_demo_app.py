"""The app without its page: what its handler gives, and what it says without gradio."""

from __future__ import annotations

import sys

import pytest
from PIL import Image

from launch import demo_app
from launch.stylise.config import AppConfig, ModelSource, usual_reward
from launch.stylise.page import build_page
from launch.stylise.pretrained import load_pipeline
from launch.stylise.session import EXAMPLE_STYLES, MAX_SAMPLES, Session, example_photos, example_styles
from reward.scorer import build_scorer
from stylevar.errors import UserError
from stylevar.sampling_config import Sampling


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(load_pipeline(ModelSource(device="cpu")), build_scorer(usual_reward()))


@pytest.fixture(scope="module")
def styles(tmp_path_factory) -> list[str]:
    return example_styles(tmp_path_factory.mktemp("styles"))


def test_examples_are_pictures(styles) -> None:
    assert len(styles) == len(set(styles)) == EXAMPLE_STYLES
    for path in (*example_photos(), *styles):
        with Image.open(path) as image:
            assert min(image.size) >= 64


def test_results_grow_scale_by_scale_and_end_in_order(session, styles) -> None:
    views = list(session.stylise(example_photos()[0], styles[0], Sampling(num_samples=3)))
    scales = session.pipeline.model.arch.scales
    assert len(views) == scales + 1
    assert [len(view.results) for view in views] == [3] * (scales + 1)
    assert [len(view.evolution) for view in views] == [*range(1, scales + 1), scales]
    assert views[0].status == f"1x1 tokens (1 of {scales})"
    rewards = [float(caption.split()[2]) for _, caption in views[-1].results]
    assert rewards == sorted(rewards, reverse=True)
    best, _ = views[-1].results[0]
    assert views[-1].evolution[-1][0].tobytes() == best.tobytes()
    head, _, *rows = [line.strip("| ").split(" | ") for line in views[-1].rewards.splitlines()[:5]]
    assert head == ["result", "reward", "lite_grey@content", "lite@style", "color@style"]
    assert [(row[0], float(row[1])) for row in rows] == [
        (caption.partition(":")[0], reward) for (_, caption), reward in zip(views[-1].results, rewards, strict=True)
    ]


def test_results_are_those_of_the_pipeline(session, styles, tmp_path) -> None:
    photo = tmp_path / "photo.png"  # a JPEG would be decoded in small
    with Image.open(example_photos()[1]) as content:
        content.save(photo)
    *_, last = session.stylise(str(photo), styles[1], Sampling(num_samples=2, seed=4), "pad")
    with Image.open(photo) as content, Image.open(styles[1]) as style:
        expected = session.pipeline(content, style, num_samples=2, seed=4, fit="pad").images
    assert {image.tobytes() for image, _ in last.results} == {image.tobytes() for image in expected}


def test_results_have_the_contents_shape(session, styles, tmp_path) -> None:
    Image.new("RGB", (200, 100), "teal").save(tmp_path / "wide.png")
    *_, last = session.stylise(str(tmp_path / "wide.png"), styles[0], Sampling(), "pad")
    assert last.results[0][0].size == (80, 40)


@pytest.mark.parametrize(("content", "words"), [(None, "no content picture"), ("text.png", "cannot be used")])
def test_bad_pictures(session, styles, tmp_path, content, words) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=words):
        list(session.stylise(content and str(tmp_path / content), styles[0], Sampling()))
    with pytest.raises(UserError, match="no style picture"):
        list(session.stylise(example_photos()[0], None, Sampling()))
    with pytest.raises(UserError, match=f"at most {MAX_SAMPLES}"):
        list(session.stylise(example_photos()[0], styles[0], Sampling(num_samples=MAX_SAMPLES + 1)))


def test_the_page_takes_an_empty_seed(session, styles, tmp_path) -> None:
    pytest.importorskip("gradio")
    page = build_page(session, tmp_path)
    stylise = next(block.fn for block in page.fns.values() if block.api_name == "stylise")
    *_, last = stylise(example_photos()[0], styles[0], 1, 0.0, 1.0, 900, 0.96, None, "crop")
    assert len(last[0]) == 1
    assert last[2] == "1 result"


def test_without_gradio_it_says_how_to_get_it(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"^the page needs gradio, which is not installed: pip install -e '\.\[app\]'$"):
        demo_app.main(AppConfig())
