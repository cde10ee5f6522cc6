"""Build distances from a configuration. Networks are imported and loaded only if they are used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import torch

from reward.base import MissingWeights, PerceptualDistance
from reward.config import RewardConfig
from reward.custom import load_custom
from reward.terms import Term
from reward.weighted import Part, WeightedSum
from reward.weights import NetworkDistance, load_network
from stylevar.errors import UserError

_CLASSES = {
    "lite": "reward.lite:LiteDistance",
    "lite_grey": "reward.lite:GreyDistance",
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

    What appears with several references is built once.

    Raises UserError if its settings or weights are unusable.
    """
    terms = config.terms()
    names = dict.fromkeys(term.name for term in terms)
    return assemble(terms, {name: build_term(name, config, device) for name in names}).to(device)


def assemble(terms: tuple[Term, ...], distances: Mapping[str, PerceptualDistance]) -> PerceptualDistance:
    """The distance that `terms` describe, of the `distances` that they name. Raises UserError if two have the same label."""
    if len(terms) == 1:
        distance = distances[terms[0].name]
        distance.compared_with = (terms[0].reference,)
        return distance
    labels = [term.label(distances[term.name].name if term.is_custom else None) for term in terms]
    if len(set(labels)) < len(labels):
        raise UserError(f"--reward: two distances have the same name ({', '.join(labels)}); give your class another name")
    parts = (Part(distances[term.name], term.weight, term.reference) for term in terms)
    return WeightedSum(dict(zip(labels, parts, strict=True)))


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
