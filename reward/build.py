"""Build distances from a configuration. Networks are imported and loaded only if they are used."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from reward.base import MissingWeights, PerceptualDistance, RewardConfig
from reward.custom import load_custom
from reward.terms import Term
from reward.weighted import WeightedSum
from reward.weights import NetworkDistance, load_network
from stylevar.errors import UserError

_CLASSES = {
    "lite": "reward.lite:LiteDistance",
    "lpips": "reward.lpips:LpipsDistance",
    "lpips_alex": "reward.lpips:LpipsAlexDistance",
    "style": "reward.vgg:StyleDistance",
    "content": "reward.vgg:ContentDistance",
    "cfsd": "reward.vgg:CfsdDistance",
    "clip": "reward.clip:ClipDistance",
    "dino": "reward.dino:DinoDistance",
    "ssim": "reward.pixels:SsimDistance",
    "psnr": "reward.pixels:PsnrDistance",
    "edges": "reward.pixels:EdgeDistance",
    "color": "reward.pixels:ColorDistance",
}


def distance_class(name: str) -> type[PerceptualDistance]:
    """The class of a built-in distance other than DreamSim. Its constructor takes no arguments."""
    module, _, kind = _CLASSES[name].partition(":")
    return getattr(importlib.import_module(module), kind)


def build_term(name: str, config: RewardConfig, device: str | torch.device = "cpu") -> PerceptualDistance:
    """Build one distance by name, in eval mode on `device`. Raises UserError if its weights are unusable."""
    if name == "dreamsim":
        from reward.dreamsim import DreamSimDistance

        return DreamSimDistance(config.dreamsim_type, _dreamsim_cache(config), device)
    if ":" in name:
        return load_custom(name, config, device)
    kind = distance_class(name)
    if issubclass(kind, NetworkDistance):
        return load_network(kind, config.metric_weights).to(device)
    return kind().eval().to(device)


def build_distance(config: RewardConfig, device: str | torch.device = "cpu") -> PerceptualDistance:
    """Build the distance of a reward, in eval mode on `device`: its only term, or the weighted sum of several.

    Raises UserError if its settings or weights are unusable.
    """
    terms = config.terms()
    built = [build_term(term.name, config, device) for term in terms]
    return built[0] if len(terms) == 1 else weighted_sum(terms, built).to(device)


def weighted_sum(terms: tuple[Term, ...], distances: list[PerceptualDistance]) -> WeightedSum:
    """The sum of distances with the terms' weights. Raises UserError if two have the same name."""
    names = [distance.name if term.is_custom else term.name for term, distance in zip(terms, distances, strict=True)]
    if len(set(names)) < len(names):
        raise UserError(f"--reward: two distances have the same name ({', '.join(names)}); give your class another name")
    weights = (term.weight for term in terms)
    return WeightedSum(dict(zip(names, zip(distances, weights, strict=True), strict=True)))


def check_weights(name: str, config: RewardConfig) -> None:
    """Raise MissingWeights, which says where to put which file, if a built-in distance lacks one. Reads no files."""
    if name == "dreamsim":
        cache = _dreamsim_cache(config)
        from reward.dreamsim import check_weights as check_dreamsim  # takes seconds

        check_dreamsim(config.dreamsim_type, cache)
        return
    kind = distance_class(name)
    if issubclass(kind, NetworkDistance):
        kind.file.find(config.metric_weights, name)


def _dreamsim_cache(config: RewardConfig) -> Path:
    if config.dreamsim_cache is not None:
        return Path(config.dreamsim_cache).expanduser()
    if config.metric_weights is not None:
        return Path(config.metric_weights).expanduser() / "dreamsim"
    raise MissingWeights(
        "the dreamsim reward has no dreamsim_cache: name the folder with DreamSim's weights (or, if it is called "
        "dreamsim, its parent with --metric-weights), or use the built-in lite reward"
    )
