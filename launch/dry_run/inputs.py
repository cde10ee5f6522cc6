"""What a plan can look at: the run's model, triplets and reward where they are there, and assumptions where they are not.

Only a default may be missing, as `model.safetensors` of `--preset paper`: what a command line names has to be there.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from data.conditions import ConditionSets
from data.index import expand_shards
from data.patterns import expand_braces, find_paths
from launch.configs.grpo import GrpoConfig
from reward.base import MissingWeights, RewardConfig
from reward.build import check_weights
from stylevar.checkpoint import VAE_FILE, config_beside, load_pair
from stylevar.config import ModelConfig
from stylevar.hub import fetch
from stylevar.transformer import StyleVAR

UNNAMED = GrpoConfig()
"""The settings of somebody who has named no file."""


@dataclass(frozen=True)
class Inputs:
    """The architecture, and the files behind it as far as they are there."""

    arch: ModelConfig
    model: StyleVAR | None
    sets: ConditionSets | None
    reward: bool
    """Whether the reward's weights are there."""
    assumed: tuple[str, ...]
    """In words: what is missing, and what is assumed in its place."""


def find_inputs(config: GrpoConfig) -> Inputs:
    """Load what is there. UserError for a file that was named and is missing or cannot be used."""
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
    """The training conditions; the held-out ones, which a plan does not read, only have to be there."""
    if config.heldout != UNNAMED.heldout:
        expand_shards(config.heldout)
    if config.novel:
        expand_shards(config.novel)
    if config.shards == UNNAMED.shards and not any(map(find_paths, expand_braces(config.shards))):
        assumed.append("no shards (--shards): steps per epoch are unknown, and the shards are taken to bring no VQ tokens")
        return None
    vae = None if model is None else model.vae.fingerprint()
    if model is None:
        assumed.append("no VQ-VAE: VQ tokens that lie beside the shards are not counted on")
    return ConditionSets({"train": config.shards}, arch.image_size, vae, config.conditions, config.seed)


def _reward(config: RewardConfig, assumed: list[str]) -> bool:
    if config.dreamsim_cache is not None or config.metric_weights is not None:
        return True
    try:
        for term in config.terms():
            if not term.is_custom:
                check_weights(term.name, config)
    except MissingWeights:
        assumed.append(f"no weights of the reward {config.reward}: its cost is that of its architecture")
        return False
    return True


def _is_absent(source: str, unnamed: str) -> bool:
    return source == unnamed and not Path(source).exists()
