"""AdaIN's arithmetic, and the object that stylises with it."""

from __future__ import annotations

import pytest
import torch

from launch.evaluation.baselines.adain import AdaIN, blend, padded, statistics
from launch.evaluation.baselines.adain_loss import adain_loss
from launch.evaluation.baselines.decoder import build_decoder
from launch.evaluation.baselines.encoders import LiteEncoder


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pictures(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return (noise(count, 3, size, size, seed=seed) * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def encoder() -> LiteEncoder:
    return LiteEncoder()


@pytest.fixture(scope="module")
def method(encoder) -> AdaIN:
    torch.manual_seed(0)
    return AdaIN(encoder, build_decoder("lite"))


def test_features_take_on_the_styles_mean_and_deviation():
    content, style = noise(2, 5, 6, 7) * 3, noise(2, 5, 4, 9, seed=1) - 2
    mean, std = statistics(blend(content, style))
    torch.testing.assert_close(mean, style.mean((2, 3), keepdim=True))
    torch.testing.assert_close(std, style.std((2, 3), correction=0, keepdim=True), atol=1e-3, rtol=0)


def test_alpha_goes_from_the_content_to_the_style():
    content, style = noise(2, 5, 6, 6), noise(2, 5, 6, 6, seed=1)
    assert torch.equal(blend(content, style, 0.0), content)
    torch.testing.assert_close(blend(content, style, 0.25), 0.75 * content + 0.25 * blend(content, style))
    torch.testing.assert_close(blend(content, content), content)


def test_a_flat_channel_is_no_division_by_zero():
    assert blend(torch.ones(1, 2, 3, 3), noise(1, 2, 3, 3)).isfinite().all()


def test_alpha_zero_rebuilds_the_content_whatever_the_style(encoder, method):
    plain = AdaIN(encoder, method.decoder, alpha=0.0)
    content = pictures(2)
    one, other = (plain.samples(content, pictures(2, seed=s), ("a", "b"), 1, 0) for s in (1, 2))
    assert torch.equal(one, other)
    assert not torch.equal(one, method.samples(content, pictures(2, seed=1), ("a", "b"), 1, 0))


def test_samples_are_the_same_picture_whatever_the_seed_and_the_batch(method):
    content, style = pictures(3), pictures(3, seed=1)
    images = method.samples(content, style, ("a", "b", "c"), 2, seed=0)
    assert images.shape == (3, 2, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images, method.samples(content, style, ("a", "b", "c"), 2, seed=7))
    alone = method.samples(content[1:2], style[1:2], ("b",), 2, seed=0)
    assert (images[1:2].int() - alone.int()).abs().max() <= 1


@pytest.mark.parametrize("size", [12, 20, 33])
def test_any_size_comes_back_as_it_went_in(method, size):
    assert method.samples(pictures(1, size), pictures(1, size), ("a",), 1, 0).shape == (1, 1, 3, size, size)


def test_padding_continues_the_border():
    image = noise(1, 3, 20, 3)
    result = padded(image)
    assert result.shape == (1, 3, 24, 16)
    assert torch.equal(result[..., :20, :3], image)
    assert torch.equal(result[..., 20:, :3], image[..., -1:, :].expand(1, 3, 4, 3))


def test_a_single_style_is_never_broadcast(method):
    with pytest.raises(ValueError, match="must both be uint8"):
        method.samples(pictures(2), pictures(1), ("a", "b"), 1, 0)
    with pytest.raises(ValueError, match="1 keys"):
        method.samples(pictures(2), pictures(2), ("a",), 1, 0)


def test_loss_of_a_perfect_decoder_is_zero(encoder):
    """A decoder that gives the picture itself: its features are the target, if style and content are one picture."""
    image = noise(2, 3, 32, 32)

    class Remembers(torch.nn.Module):
        def forward(self, target: torch.Tensor) -> torch.Tensor:
            return image

    loss = adain_loss(encoder, Remembers(), image, image, style_weight=10.0)
    assert loss.total.item() == pytest.approx(0, abs=1e-6)
    other = adain_loss(encoder, Remembers(), image, noise(2, 3, 32, 32, seed=1) ** 3, style_weight=10.0)
    assert other.style.item() > 0.01
    torch.testing.assert_close(other.total, other.content + 10 * other.style)
