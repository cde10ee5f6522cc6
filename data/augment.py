"""Variation of training triplets, anew in every epoch: rotation and brightness of the content, a crop of the style."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from PIL import Image, ImageEnhance
from torch import Tensor

from data.shard_writer import ROLES
from data.triplets import to_u8
from stylevar.bounds import Remedy, check_bounds
from stylevar.contracts import Condition


@dataclass(frozen=True)
class AugmentConfig:
    """How training triplets are varied; held-out ones and those of GRPO never are."""

    augment: bool = True
    """Vary the training triplets anew in every epoch."""
    rotation: Annotated[float, Ge(0), Le(45), Remedy("it is an angle in degrees")] = 10.0
    """Largest rotation of the content in degrees; the target follows."""
    brightness: Annotated[float, Ge(0), Lt(1)] = 0.2
    """The content's brightness is multiplied by a number within this distance of 1."""
    style_crop: Annotated[float, Gt(0), Le(1)] = 0.8
    """Smallest share of the style image's area that is cut out, at a random place, and enlarged again."""
    flip: bool = False
    """Mirror every second triplet (all three images of it), with and without --augment."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def varies(self) -> bool:
        """Whether a picture is another one each time. Mirroring alone gives only two."""
        return self.augment and (self.rotation > 0 or self.brightness > 0 or self.style_crop < 1)


def augment(condition: Condition, config: AugmentConfig, seed: int, epoch: int) -> Condition:
    """`condition` as it is in `epoch`: the same for the same seed, epoch and key, wherever it is computed.

    Tokens of the unchanged pictures are dropped with them.
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
    """uint8 [3, S, S] turned about its centre and enlarged just so far that no corner is empty, in one resampling."""
    side = image_u8.shape[-1]
    turn = math.radians(degrees)
    # The largest upright square within a square turned by this angle; beyond its edge lies black.
    shrink = (1 - 1e-9) / (abs(math.cos(turn)) + abs(math.sin(turn)))
    cos, sin, middle = math.cos(turn) * shrink, math.sin(turn) * shrink, side / 2
    matrix = (cos, sin, middle * (1 - cos - sin), -sin, cos, middle * (1 + sin - cos))
    picture = _picture(image_u8)
    return to_u8(picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))


def _cropped(image_u8: Tensor, area: float, across: float, down: float) -> Tensor:
    """A square of this share of the area; `across` and `down` in [0, 1] say where."""
    side = image_u8.shape[-1]
    part = side * math.sqrt(area)
    left, top = across * (side - part), down * (side - part)
    box = (left, top, left + part, top + part)
    return to_u8(_picture(image_u8).resize((side, side), Image.Resampling.LANCZOS, box=box))


def _picture(image_u8: Tensor) -> Image.Image:
    return Image.fromarray(torch.movedim(image_u8, 0, -1).contiguous().numpy())
