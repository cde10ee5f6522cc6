"""`StyleVARPipeline`: pictures in, pictures out, the same in any batch, and scale by scale."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import small_model
import tiny
import torch
from PIL import Image

from stylevar.errors import UserError
from stylevar.pictures import to_u8
from stylevar.pipeline import StyleVARPipeline
from stylevar.sampling_config import Sampling, SamplingConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    tiny.save(path)
    return path


@pytest.fixture(scope="module")
def pipe() -> StyleVARPipeline:
    return StyleVARPipeline(small_model.build())


def pixels(image: Image.Image) -> bytes:
    return image.tobytes()


def test_one_pair(pipe) -> None:
    result = pipe(content=tiny.picture(1, 30), style=tiny.picture(2, 20))
    assert [image.size for image in result.images] == [(tiny.SIZE, tiny.SIZE)]
    again = pipe(content=tiny.picture(1, 30), style=tiny.picture(2, 20))
    assert pixels(result.images[0]) == pixels(again.images[0])
    other = pipe(content=tiny.picture(1, 30), style=tiny.picture(2, 20), seed=1)
    assert pixels(result.images[0]) != pixels(other.images[0])


@pytest.mark.parametrize("batch", [1, 5])
def test_lists_give_what_their_pairs_give_alone(pipe, batch) -> None:
    contents, styles = ([tiny.picture(seed, 20) for seed in seeds] for seeds in ((1, 2, 3), (4, 5, 6)))
    together = pipe(contents, styles, num_samples=3, batch=batch)
    assert [len(samples) for samples in together.pairs] == [3, 3, 3]
    assert len(together.images) == 9
    for content, style, samples in zip(contents, styles, together.pairs, strict=True):
        alone = pipe(content, style, num_samples=3).images
        assert [pixels(image) for image in samples] == [pixels(image) for image in alone]


def test_names_give_streams(pipe) -> None:
    pictures = [tiny.picture(1)] * 2, tiny.picture(2)
    same, named = pipe(*pictures), pipe(*pictures, names=["a", "b"])
    assert pixels(same.images[0]) == pixels(same.images[1])
    assert pixels(named.images[0]) != pixels(named.images[1])
    assert pixels(named.images[1]) == pixels(pipe(pictures[0][0], pictures[1], names=["b"]).images[0])


def test_one_style_for_many_contents(pipe) -> None:
    contents = [tiny.picture(1), tiny.picture(2)]
    assert len(pipe(contents, tiny.picture(3)).images) == len(pipe(tiny.picture(3), contents).images) == 2


def test_pictures_of_any_kind_and_shape(pipe) -> None:
    wide = Image.new("RGBA", (40, 20), (200, 0, 0, 0))
    result = pipe(wide, Image.new("L", (5, 9), 7), fit="pad", restore="size", top_k=1)
    assert result.images[0].size == (40, 20)
    white = pipe(
        Image.new("RGB", (40, 20), "white"), Image.new("RGB", (5, 9), (7, 7, 7)), fit="pad", restore="size", top_k=1
    )
    assert pixels(result.images[0]) == pixels(white.images[0])


def test_styles_are_never_padded(pipe) -> None:
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("blue", (10, 0, 30, 20))
    prepared = pipe.prepared(picture, picture, "pad")
    assert prepared.content_u8[0, 0].max() == 255
    assert prepared.style_u8[0, 0].max() < 20


def test_scales_lead_to_the_results(pipe) -> None:
    pictures = tiny.picture(1, 20), tiny.picture(2, 20)
    steps = list(pipe.scales(*pictures, Sampling(num_samples=2, seed=3)))
    assert [(step.number, step.total, step.side) for step in steps] == [(1, 3, 1), (2, 3, 2), (3, 3, 3)]
    drawn = [[pixels(image) for image in step.decode()[0]] for step in steps]
    assert drawn[-1] == [pixels(image) for image in pipe(*pictures, num_samples=2, seed=3).images]
    assert drawn[0] != drawn[1] != drawn[2]


def test_a_scale_is_decoded_when_asked(pipe) -> None:
    first, *rest = pipe.scales(tiny.picture(1), tiny.picture(2))
    assert len(rest) == 2
    state = first.f_hat.clone()
    first.decode()
    assert torch.equal(first.f_hat, state)


def test_strength_and_temperature_reach_the_model(pipe) -> None:
    pictures = tiny.picture(1), tiny.picture(2)
    plain = pixels(pipe(*pictures).images[0])
    assert pixels(pipe(*pictures, temperature=0.05).images[0]) != plain
    assert pixels(pipe(*pictures, top_k=1).images[0]) != plain
    greedy = [pipe.scales(*pictures, Sampling(top_k=1, style_strength=strength)) for strength in (-1, 1)]
    latents = [[step.f_hat for step in steps][-1] for steps in greedy]
    assert not torch.equal(*latents)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0}, "^temperature=0: must be positive"),
        ({"temperature": float("nan")}, "^temperature=nan: must be positive"),
        ({"style_strength": 2}, r"^style_strength=2: must lie in \[-1, 1\]"),
        ({"num_samples": 0}, "^num_samples=0: must be at least 1"),
        ({"top_k": -1}, "^top_k=-1: must be at least 0"),
        ({"top_p": 1.5}, r"^top_p=1\.5: must lie in \[0, 1\]"),
        ({"batch": 0}, "^batch=0: must be at least 1"),
        ({"kv_cache": "both"}, "^kv_cache='both': must be exact or paper"),
        ({"names": ["a", "b"]}, "2 names for 1 pairs"),
        ({"style": "painting.jpg"}, "style 0 is a str"),
        ({"style": []}, "1 content and 0 style pictures"),
        ({"style": [tiny.picture(1)] * 2, "content": [tiny.picture(1)] * 3}, "3 content and 2 style pictures"),
        ({"content": Image.new("F", (4, 4))}, "content 0 cannot be used"),
    ],
)
def test_mistakes(pipe, settings, words) -> None:
    with pytest.raises(UserError, match=words):
        pipe(**({"content": tiny.picture(1), "style": tiny.picture(2)} | settings))


@pytest.mark.parametrize("settings", [{"top_k": -1}, {"top_p": 2.0}, {"kv_cache": "both"}])
def test_the_released_entry_point_refuses_the_same_settings(pipe, settings) -> None:
    style, content, _ = small_model.inputs(pipe.model, 1)
    with pytest.raises(UserError, match=f"^{next(iter(settings))}="):
        pipe.model.autoregressive_infer(1, style, content, **settings)


def test_a_cut_file_that_is_read_only_now(pipe, tmp_path) -> None:
    (tmp_path / "cut.png").write_bytes(tiny.png(1, 40)[:700])
    with Image.open(tmp_path / "cut.png") as cut, pytest.raises(UserError, match="content 0 cannot be used"):
        pipe(cut, tiny.picture(1))


def test_the_tokenizer_is_found_beside_the_model(folder, tmp_path) -> None:
    by_file = StyleVARPipeline.from_pretrained(str(folder / "model.safetensors"), device="cpu")
    assert by_file.image_size == tiny.SIZE
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"^vae=None: .* has no config.json beside it: give its VQ-VAE"):
        StyleVARPipeline.from_pretrained(tmp_path)
    elsewhere = StyleVARPipeline.from_pretrained(tmp_path, vae=folder, device="cpu")
    pair = tiny.picture(1), tiny.picture(2)
    assert pixels(elsewhere(*pair).images[0]) == pixels(by_file(*pair).images[0])


def test_bf16_follows_fp32(folder) -> None:
    pipes = [StyleVARPipeline.from_pretrained(folder, device="cpu", precision=precision) for precision in ("fp32", "bf16")]
    images = [to_u8(p(tiny.picture(1), tiny.picture(2), top_k=1).images[0]).float() for p in pipes]
    assert np.abs((images[0] - images[1]).numpy()).mean() < 20


def test_a_model_is_sampled_as_its_config_says_unless_a_flag_does(pipe) -> None:
    pictures = tiny.picture(1), tiny.picture(2)
    published, greedy = (pixels(pipe(*pictures, top_k=k).images[0]) for k in (900, 1))
    assert published != greedy
    arch = pipe.model.arch
    try:
        pipe.model.arch = dataclasses.replace(arch, sampling=SamplingConfig(top_k=1))
        assert pixels(pipe(*pictures).images[0]) == greedy
        assert pixels(pipe(*pictures, top_k=900).images[0]) == published
    finally:
        pipe.model.arch = arch
