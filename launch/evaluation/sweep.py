"""Find each model's best temperature, so that methods are compared at their own.

Lower temperatures raise the reward of any model, trained or not. A model with sharper predictions after training looks
better than it is if the other model is sampled at too high a temperature.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from tqdm import tqdm

from launch.common.device import choose_device
from launch.evaluation.conditions import ConditionSet, open_conditions
from launch.evaluation.config import EvalConfig
from launch.evaluation.stylizer import CheckpointStylizer, Method, build_stylizer, image_size
from reward.scorer import RewardScorer, build_scorer
from stylevar.errors import UserError

SAMPLES = 2
"""Samples per condition and temperature."""


def at_best_temperatures(config: EvalConfig, methods: Sequence[Method]) -> tuple[Method, ...]:
    """The methods, each checkpoint with the temperature from --sweep-temperature that has the highest mean reward.

    The rewards come from `--sweep-conditions` conditions of `--sweep-shards`, with the same random numbers at every
    temperature. Prints one line per checkpoint, with standard errors over the conditions.
    """
    if not config.sweep_temperature:
        return tuple(methods)
    trial = dataclasses.replace(config, shards=config.sweep_shards, limit=config.sweep_conditions, content=None, style=None)
    conditions = open_conditions(trial, image_size(methods, config))
    if (name := config.reward.target_term) is not None and not conditions.has_targets:
        raise UserError(
            f"--sweep-temperature: the reward {name} compares with targets, and --sweep-shards hold pairs without one; "
            f"write {name}@content or {name}@style in --reward"
        )
    device = choose_device(config.device)
    scorer = build_scorer(config.reward, device)
    chosen = []
    for method in methods:
        if method.baseline is None:
            stylizer = build_stylizer(method, config, device)
            assert isinstance(stylizer, CheckpointStylizer)
            rewards = {t: mean_rewards(stylizer, t, conditions, scorer, config) for t in config.sweep_temperature}
            best = max(rewards, key=lambda t: float(rewards[t].mean()))
            print(f"{method.name}: {_table(rewards)}: the best is {best:g}")
            method = dataclasses.replace(method, temperature=best)
        chosen.append(method)
    return tuple(chosen)


@torch.no_grad()
def mean_rewards(
    stylizer: CheckpointStylizer, temperature: float, conditions: ConditionSet, scorer: RewardScorer, config: EvalConfig
) -> torch.Tensor:
    """The mean reward of each condition at a temperature, fp32 [N]."""
    stylizer.temperature = temperature
    means = []
    starts = range(0, len(conditions), config.batch)
    for start in tqdm(starts, desc=f"{stylizer.name} at {temperature:g}", leave=False):
        batch = conditions.batch(range(start, min(start + config.batch, len(conditions))))
        images = stylizer.samples(batch.content, batch.style, batch.keys, SAMPLES, config.seed)
        means.append(scorer.score(images, batch.references).rewards.mean(1))
    return torch.cat(means)


def _table(rewards: dict[float, torch.Tensor]) -> str:
    """The mean reward at each temperature, with its standard error."""
    return ", ".join(
        f"{t:g}: {float(some.mean()):.3f} ({float(some.std()) / math.sqrt(len(some)) if len(some) > 1 else math.nan:.3f})"
        for t, some in rewards.items()
    )
