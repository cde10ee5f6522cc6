"""What a plan is based on: the run's model, triplets and reward, and assumptions where files are missing.

Only default files may be missing, such as `model.safetensors` of `--preset paper`. A file that the user named must exist.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from data.conditions import ConditionSets
from data.patterns import expand_braces, expand_shards, find_paths
from launch.configs.grpo import GrpoConfig
from reward.base import MissingWeights
from reward.build import check_weights
from reward.config import RewardConfig
from stylevar.checkpoint import VAE_FILE, config_beside, load_pair
from stylevar.config import ModelConfig
from stylevar.hub import fetch
from stylevar.transformer import StyleVAR

UNNAMED = GrpoConfig()
"""Settings that name no file."""


@dataclass(frozen=True)
class Inputs:
    """The architecture, and those files of the run that exist."""

    arch: ModelConfig
    model: StyleVAR | None
    sets: ConditionSets | None
    reward: bool
    """Whether the reward's weights exist."""
    assumed: tuple[str, ...]
    """In words: what is missing, and what is assumed instead."""


def find_inputs(config: GrpoConfig) -> Inputs:
    """Load the files that exist. Raises UserError if a file that the user named is missing or cannot be used."""
    assumed: list[str] = []
    model, arch = _model(config, assumed)
    sets = _sets(config, arch, model, assumed)
    return Inputs(arch, model, sets, _reward(config.reward, assumed), tuple(assumed))


def _model(config: GrpoConfig, assumed: list[str]) -> tuple[StyleVAR | None, ModelConfig]:
    no_model = _is_absent(config.init, UNNAMED.init)
    no_vae = _is_absent(config.vae, UNNAMED.vae)
    if not no_model and not no_vae:
        model = load_pair(config.init, config.vae, config.alphas, config.revision)[1]
        return model, model.arch
    if not no_vae:
        fetch(config.vae, VAE_FILE, config.revision)
    arch = None
    if not no_model:
        arch = config_beside(config.init, config.revision)
    missing = " and ".join([*["no model (--init)"] * no_model, *["no VQ-VAE (--vae)"] * no_vae])
    arch, whose = (ModelConfig(), "the paper's") if arch is None else (arch, f"that of {config.init}")
    assumed.append(f"{missing}: the architecture is {whose}, depth {arch.depth} at {arch.image_size} px")
    return None, arch if config.alphas is None else dataclasses.replace(arch, alphas=config.alphas)


def _sets(config: GrpoConfig, arch: ModelConfig, model: StyleVAR | None, assumed: list[str]) -> ConditionSets | None:
    """The training conditions. Held-out shards only have to exist: a plan does not read them."""
    if config.heldout != UNNAMED.heldout:
        expand_shards(config.heldout)
    if config.novel:
        expand_shards(config.novel)
    if config.shards == UNNAMED.shards and not any(map(find_paths, expand_braces(config.shards))):
        assumed.append("no shards (--shards): steps per epoch are unknown, and the shards are assumed to hold no VQ tokens")
        return None
    vae = None if model is None else model.vae.fingerprint()
    if model is None:
        assumed.append("no VQ-VAE: VQ tokens beside the shards are not counted on, as they may be of another one")
    patterns, needed = {"train": config.shards}, config.reward.target_term
    return ConditionSets(patterns, arch.image_size, vae, config.conditions, config.seed, needed)


def _reward(config: RewardConfig, assumed: list[str]) -> bool:
    if config.dreamsim_cache is not None or config.metric_weights is not None:
        return True
    try:
        for term in config.terms():
            if not term.is_custom:
                check_weights(term.name, config)
    except MissingWeights:
        assumed.append(f"no weights of the reward {config.reward}: its cost is estimated from its architecture")
        return False
    return True


def _is_absent(source: str, unnamed: str) -> bool:
    return source == unnamed and not Path(source).exists()
