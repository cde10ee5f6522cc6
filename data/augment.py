"""Augment training triplets, differently in each epoch: rotate and brighten the content, crop the style."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from data.config import AugmentConfig
from data.shard_writer import ROLES
from data.triplets import to_u8
from stylevar.contracts import Condition


def augment(condition: Condition, config: AugmentConfig, seed: int, epoch: int) -> Condition:
    """`condition` augmented for `epoch`. The result depends only on seed, epoch and key.

    If the pictures change, their tokens are dropped.
    """
    if not config.varies and not config.flip:
        return condition
    angle, light, area, across, down, mirror = _draws(seed, epoch, condition.key)
    images = {role: getattr(condition, role) for role in ROLES}
    if config.augment and config.rotation:
        degrees = (2 * angle - 1) * config.rotation
        images |= {role: rotated(images[role], degrees) for role in ("content", "target")}
    if config.augment and config.brightness:
        factor = 1 + (2 * light - 1) * config.brightness
        images["content"] = to_u8(ImageEnhance.Brightness(_picture(images["content"])).enhance(factor))
    if config.augment and config.style_crop < 1:
        images["style"] = _cropped(images["style"], config.style_crop + area * (1 - config.style_crop), across, down)
    if config.flip and mirror < 0.5:
        images = {role: image.flip(-1) for role, image in images.items()}
    elif not config.varies:
        return condition
    return replace(condition, **images, tokens=None)


def is_mirrored(seed: int, epoch: int, key: str) -> bool:
    """Whether `augment` with --flip mirrors a triplet in an epoch."""
    return _draws(seed, epoch, key)[-1] < 0.5


def _draws(seed: int, epoch: int, key: str) -> list[float]:
    """Six numbers in [0, 1): for angle, light, the crop's area and place, and mirroring."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{key}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big"))).random(6).tolist()


def rotated(image_u8: Tensor, degrees: float) -> Tensor:
    """Rotate uint8 [3, S, S] about its centre and enlarge it until no corner is empty, in one resampling."""
    side = image_u8.shape[-1]
    turn = math.radians(degrees)
    # The largest upright square inside a square rotated by this angle; beyond its edge the picture is black.
    shrink = (1 - 1e-9) / (abs(math.cos(turn)) + abs(math.sin(turn)))
    cos, sin, middle = math.cos(turn) * shrink, math.sin(turn) * shrink, side / 2
    matrix = (cos, sin, middle * (1 - cos - sin), -sin, cos, middle * (1 + sin - cos))
    picture = _picture(image_u8)
    return to_u8(picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))


def _cropped(image_u8: Tensor, area: float, across: float, down: float) -> Tensor:
    """Crop a square with this share of the area; `across` and `down` in [0, 1] give its position."""
    side = image_u8.shape[-1]
    part = side * math.sqrt(area)
    left, top = across * (side - part), down * (side - part)
    box = (left, top, left + part, top + part)
    return to_u8(_picture(image_u8).resize((side, side), Image.Resampling.LANCZOS, box=box))


def _picture(image_u8: Tensor) -> Image.Image:
    return Image.fromarray(torch.movedim(image_u8, 0, -1).contiguous().numpy())
