"""Varied triplets: seeded, the target follows the content's geometry, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from data.augment import augment, rotated
from data.config import AugmentConfig
from data.triplets import to_u8
from launch.benchmarks.generated import picture
from stylevar.contracts import Condition
from stylevar.errors import UserError

STILL = AugmentConfig(rotation=0, brightness=0, style_crop=1)


def condition(key: str = "k") -> Condition:
    content, style, target = (to_u8(picture(seed, 48)) for seed in range(3))
    return Condition(key, content, style, target, tokens=torch.zeros(3, 14, dtype=torch.int16))


def same(a: Condition, b: Condition) -> bool:
    return all(torch.equal(getattr(a, role), getattr(b, role)) for role in ("content", "style", "target"))


def test_equal_seed_epoch_and_key_give_equal_pictures() -> None:
    config = AugmentConfig(flip=True)
    first = augment(condition(), config, 1, 2)
    assert same(first, augment(condition(), config, 1, 2))
    assert first.content.shape == (3, 48, 48)
    assert first.content.dtype == torch.uint8
    assert first.tokens is None
    for other in (
        augment(condition(), config, 0, 2),
        augment(condition(), config, 1, 3),
        augment(condition("l"), config, 1, 2),
    ):
        assert not same(first, other)


@pytest.mark.parametrize("config", [AugmentConfig(augment=False), STILL])
def test_off_means_untouched(config) -> None:
    triplet = condition()
    assert augment(triplet, config, 0, 0) is triplet
    assert not config.varies


def test_the_target_follows_the_rotation_and_nothing_else() -> None:
    triplet = replace(condition(), target=condition().content)
    turned = augment(triplet, replace(STILL, rotation=10), 0, 0)
    assert torch.equal(turned.content, turned.target)
    assert not torch.equal(turned.content, triplet.content)
    assert torch.equal(turned.style, triplet.style)
    lit = augment(triplet, replace(STILL, brightness=0.5), 0, 0)
    assert torch.equal(lit.target, triplet.target)
    assert torch.equal(lit.style, triplet.style)
    ratio = lit.content.double().mean() / triplet.content.double().mean()
    assert 0.5 <= ratio <= 1.5
    assert abs(ratio - 1) > 0.01
    cropped = augment(triplet, replace(STILL, style_crop=0.5), 0, 0)
    assert torch.equal(cropped.content, triplet.content)
    assert not torch.equal(cropped.style, triplet.style)


def test_rotation_turns_about_the_centre_without_empty_corners() -> None:
    white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    assert all(int(rotated(white, degrees).min()) == 255 for degrees in (-45, -10, 3, 30))
    image = to_u8(picture(0, 48))
    assert (rotated(image, 0).int() - image.int()).abs().max() <= 1
    quarter = rotated(image, 90).int() - image.rot90(-1, (1, 2)).int()
    assert quarter.abs().max() <= 1


def test_mirroring_takes_half_of_the_triplets_whole() -> None:
    triplets = [augment(condition(f"k{i}"), replace(STILL, flip=True), 0, 0) for i in range(200)]
    plain = condition()
    mirrored = replace(plain, **{role: getattr(plain, role).flip(-1) for role in ("content", "style", "target")})
    flipped = [same(triplet, mirrored) for triplet in triplets]
    assert all(same(triplet, plain) != flip for triplet, flip in zip(triplets, flipped, strict=True))
    assert 70 < sum(flipped) < 130
    assert all((triplet.tokens is None) == flip for triplet, flip in zip(triplets, flipped, strict=True))


def test_crops_lie_anywhere_and_never_outside() -> None:
    ramp = torch.arange(48, dtype=torch.uint8).mul(5).expand(3, 48, 48).contiguous()
    triplet = replace(condition(), style=ramp)
    lefts = [int(augment(triplet, replace(STILL, style_crop=0.3), 0, epoch).style[0, 24, 0]) for epoch in range(40)]
    assert min(lefts) < 20
    assert max(lefts) > 60
    assert np.all(np.array(lefts) <= 5 * (48 - 48 * 0.3**0.5) + 10)


@pytest.mark.parametrize("setting", [{"rotation": 50}, {"brightness": 1}, {"style_crop": 0}])
def test_bad_settings(setting) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(setting)).replace('_', '-')}"):
        AugmentConfig(**setting)


def test_tiny_pictures_too() -> None:
    image = to_u8(tiny.picture(0))
    assert rotated(image, 7).shape == image.shape
