"""Load a user's own distance, `--reward package.module:Class`, and check that it implements the interface."""

from __future__ import annotations

import functools
import importlib
import re
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reward.base import Embedding, PerceptualDistance
from reward.config import RewardConfig
from stylevar.errors import UserError

_SIZE, _IMAGES = 64, 2
_TOLERANCE = 1e-3
"""Relative tolerance for a row's distance in different batches, whose sums run in a different order."""


def load_custom(spec: str, config: RewardConfig, device: str | torch.device = "cpu") -> PerceptualDistance:
    """Build `package.module:Class` as `Class(config)`, move it to `device`, and check it there.

    Errors that it raises later become a UserError. Raises UserError if it cannot be imported or built, or breaks the
    interface (see `check_distance`).
    """
    kind: Any = _find(spec)
    try:
        distance: PerceptualDistance = kind(config).to(device)
    except UserError:
        raise
    except Exception as error:  # A user's constructor may raise anything.
        raise UserError(f"--reward {spec}: {kind.__name__}(config) failed with {type(error).__name__}: {error}") from error
    distance.requires_grad_(False)
    distance.eval()
    check_distance(distance, spec)
    for name in ("embed", "compare", "compare_cells"):
        setattr(distance, name, _explained(getattr(distance, name), spec))
    return distance


def _explained(method: Callable[..., Any], spec: str) -> Callable[..., Any]:
    """The method, whose errors become a UserError that says where they happened."""

    @functools.wraps(method)
    def explained(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # A user's code may raise anything.
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"--reward {spec} failed with {reason} ({place.filename}, line {place.lineno}): fix it, then continue the "
                "run with --resume"
            ) from error

    return explained


def _find(spec: str) -> type[PerceptualDistance]:
    module_name, _, class_name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"--reward {spec}: no module named {error.name}; run from the folder that contains it, or install it"
        ) from error
    except Exception as error:  # A user's module may raise anything.
        raise UserError(f"--reward {spec}: importing {module_name} failed with {type(error).__name__}: {error}") from error
    kind = getattr(module, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, PerceptualDistance)):
        raise UserError(f"--reward {spec}: {module_name} has no class {class_name} derived from PerceptualDistance")
    return kind


@torch.inference_mode()
def check_distance(distance: PerceptualDistance, spec: str) -> None:
    """Try a distance on noise, and raise UserError for the first rule that it breaks:

    it has a valid name; no module is in training mode; `embed` returns a tuple of tensors with a row per image and does
    not change the images; `compare` returns finite floats [N], including "total"; the same images give the same values;
    a row's value does not depend on the batch; an image is not farther from itself than from another; if the class has
    `compare_cells`, the mean of its map is "total".
    """

    def demand(kept: bool, rule: str) -> None:
        if not kept:
            raise UserError(f"--reward {spec} breaks the interface of PerceptualDistance: {rule}")

    name: Any = getattr(distance, "name", None)
    demand(isinstance(name, str) and bool(re.fullmatch(r"[\w.-]+", name)), f"its name {name!r} must be a plain word")
    demand(not any(m.training for m in distance.modules()), "a module is in training mode after eval()")
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, _IMAGES, 3, _SIZE, _SIZE, generator=generator).to(distance.device)
    first, second = images
    before = images.clone()
    try:
        embedded = [_embed(distance, batch, demand) for batch in (first, second, first)]
        parts = distance.compare(embedded[0], embedded[1])
        _check_parts(parts, demand)
        again = distance.compare(embedded[2], _embed(distance, second, demand))["total"]
        itself = distance.compare(embedded[0], embedded[2])["total"]
        alone = torch.cat(
            [
                distance.compare(_embed(distance, a[None], demand), _embed(distance, b[None], demand))["total"]
                for a, b in zip(first, second, strict=True)
            ]
        )
        has_map = type(distance).compare_cells is not PerceptualDistance.compare_cells
        cells = distance.compare_cells(embedded[0], _embed(distance, second, demand)) if has_map else None
    except UserError:
        raise
    except Exception as error:  # A user's code may raise anything.
        shape = list(first.shape)
        raise UserError(f"--reward {spec} failed on images {shape} with {type(error).__name__}: {error}") from error
    total = parts["total"]
    scale = total.abs().max().clamp(min=1e-6)
    demand(torch.equal(images, before), "embed or compare changes the images")
    demand(torch.equal(total, again), "the same images give different values")
    demand(bool(((total - alone).abs() <= _TOLERANCE * scale).all()), "a row's value depends on the rest of the batch")
    demand(bool((itself <= total + _TOLERANCE * scale).all()), "an image is farther from itself than from another")
    if cells is not None:
        right = isinstance(cells, Tensor) and cells.ndim == 3 and len(cells) == _IMAGES
        demand(right, "compare_cells must return a tensor [N, h, w]")
        even = (cells.mean((1, 2)) - total).abs() <= _TOLERANCE * scale
        demand(bool(even.all()), "the mean of compare_cells must be compare's 'total'")


def _embed(distance: PerceptualDistance, images_01: Tensor, demand: Any) -> Embedding:
    embedding = distance.embed(images_01)
    rows = len(images_01)
    right = isinstance(embedding, tuple) and bool(embedding)
    demand(right and all(isinstance(t, Tensor) for t in embedding), "embed must return a tuple of tensors")
    demand(all(t.ndim > 0 and t.shape[0] == rows for t in embedding), "each tensor of embed must have a row per image")
    return embedding


def _check_parts(parts: Any, demand: Any) -> None:
    demand(isinstance(parts, dict) and "total" in parts, 'compare must return a dict with "total"')
    for name, value in parts.items():
        right = isinstance(value, Tensor) and value.is_floating_point() and value.shape == (_IMAGES,)
        demand(right, f"compare's {name!r} must be a floating point tensor [N]")
        demand(bool(value.isfinite().all()), f"compare's {name!r} is not finite")
