"""Batch sizes from a memory budget: what is chosen fits, is the same everywhere, and what cannot fit is told."""

from __future__ import annotations

import dataclasses

import pytest
import small_model

from launch.common.text import parse_size
from launch.configs.cluster import ROLES, ClusterConfig
from launch.configs.grpo import GrpoConfig
from launch.sizing.budget import PROCESS, RESERVE, Choice, choose, workload
from launch.sizing.memory import MemoryPlan
from learner.grpo.config import LearnerConfig
from reward.config import RewardConfig
from rollout.config import RolloutConfig
from stylevar.config import ModelConfig
from stylevar.errors import UserError

ARCH = small_model.build(patch_nums=(1, 2, 4, 8), V=96, depth=3, ch_mult=(1, 1, 1, 1)).arch
CONFIG = GrpoConfig(
    conditions=4,
    rollout=RolloutConfig(group=8),
    learner=LearnerConfig(lora_rank=4),
    reward=RewardConfig(reward="lite", reward_batch=8),
)
DISTRIBUTED = dataclasses.replace(CONFIG, cluster=ClusterConfig(placement="distributed"))


def chosen(budget: int | None, config: GrpoConfig = CONFIG, on_gpu: bool = True) -> Choice:
    return choose(config, ARCH, dict.fromkeys(ROLES, budget), on_gpu)


def sizes(choice: Choice) -> tuple[int, int, int]:
    c = choice.config
    return c.learner.micro_batch, c.rollout.rollout_batch, c.rollout.decode_batch


def plan_of(choice: Choice) -> MemoryPlan:
    return MemoryPlan(workload(choice.config, ARCH, on_gpu=True), CONFIG.conditions)


@pytest.fixture(scope="module")
def least() -> int:
    """Bytes of the least that a run takes."""
    ones = dataclasses.replace(
        CONFIG,
        learner=dataclasses.replace(CONFIG.learner, micro_batch=1),
        rollout=RolloutConfig(group=8, rollout_batch=1, decode_batch=1),
    )
    return MemoryPlan(workload(ones, ARCH, on_gpu=True), CONFIG.conditions).colocated().total


def test_a_large_budget_takes_all_at_once_and_a_tight_one_one_by_one(least):
    assert sizes(chosen(10**12)) == (8, 32, 8)
    tight = chosen(int(1.001 * least / (1 - RESERVE["cuda"])))
    assert tight.shortage is None
    assert sizes(tight) < (8, 32, 8)


@pytest.mark.parametrize("times", [1.05, 1.3, 2.0])
@pytest.mark.parametrize("graphs", [False, True])
def test_what_is_chosen_fits(least, times, graphs):
    config = dataclasses.replace(CONFIG, rollout=RolloutConfig(group=8, cuda_graphs=graphs))
    budget = int(times * least / (1 - RESERVE["cuda"]))
    choice = chosen(budget, config)
    if choice.shortage is None:
        assert plan_of(choice).colocated().total <= budget * (1 - RESERVE["cuda"])
    assert graphs or choice.shortage is None
    assert choice == chosen(budget, config)


def test_what_is_set_stays_and_a_resolved_config_is_final(least):
    config = dataclasses.replace(CONFIG, learner=LearnerConfig(lora_rank=4, micro_batch=3))
    assert sizes(chosen(10**12, config)) == (3, 32, 8)
    resolved = chosen(10**12, config).config
    assert chosen(1, resolved).config == resolved
    assert chosen(1, resolved).shortage is None


@pytest.mark.slow
def test_moments_go_to_the_host_only_if_they_must(least):
    assert chosen(10**12).config.learner.optimizer_device == "device"
    moments = next(p.bytes for p in plan_of(chosen(10**12)).colocated().components if p.name == "optimizer moments")
    between = int((least - moments // 2) / (1 - RESERVE["cuda"]))
    choice = chosen(between)
    assert choice.shortage is None
    assert choice.config.learner.optimizer_device == "cpu"
    assert choice.facts()["optimizer on"] == "cpu"
    assert chosen(10**12, on_gpu=False).config.learner.optimizer_device == "device"


@pytest.mark.slow
def test_a_budget_that_holds_nothing_names_needs_and_flags():
    config = dataclasses.replace(CONFIG, memory_budget="1MiB")
    shortage = chosen(1 << 20, config).shortage
    assert shortage is not None
    for words in ("--memory-budget 1MiB", "transformer", "--recompute", "--optimizer-device cpu", "--precision bf16"):
        assert words in shortage
    assert "\n" not in shortage
    by_hand = dataclasses.replace(config, learner=LearnerConfig(lora_rank=4, micro_batch=8))
    assert "Lower --micro-batch" in str(chosen(1 << 20, by_hand).shortage)


def test_roles_choose_by_their_own_devices_whatever_their_number(least):
    budgets = {"rollout": least, "reward": 1, "learner": 10**12}
    first = choose(DISTRIBUTED, ARCH, budgets, on_gpu=True)
    assert first.config.learner.micro_batch == 8
    assert first.config.rollout.rollout_batch < 32
    more = dataclasses.replace(DISTRIBUTED, cluster=ClusterConfig(placement="distributed", rollout_workers=3))
    assert sizes(choose(more, ARCH, budgets, on_gpu=True)) == sizes(first)


def test_without_a_budget_small_models_compute_all_at_once():
    assert sizes(chosen(None, on_gpu=False)) == (8, 32, 8)


@pytest.mark.parametrize(("text", "expected"), [("22GiB", 22 << 30), ("1.5 GB", 1_500_000_000), ("512MiB", 1 << 29)])
def test_sizes_have_units(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["22", "0GiB", "-1GiB", "22gib", "much"])
def test_sizes_without_sense_are_errors(text):
    with pytest.raises(UserError, match="--memory-budget"):
        GrpoConfig(memory_budget=text)


def test_memory_is_scarce_on_a_cpu_with_a_budget():
    assert GrpoConfig(memory_budget="9GiB").scarce_memory("cpu")
    assert not GrpoConfig(memory_budget="9GiB").scarce_memory("cuda")
    assert not GrpoConfig().scarce_memory("cpu")


def test_the_flags_named_together_are_those_that_it_takes():
    arch = ModelConfig(patch_nums=(1, 2, 3, 4), depth=8, ch=32, alphas=(0.5,) * 4)

    def need(config: GrpoConfig) -> int:
        ones = dataclasses.replace(config, rollout=RolloutConfig(group=2, rollout_batch=1, decode_batch=1))
        ones = dataclasses.replace(ones, learner=dataclasses.replace(ones.learner, micro_batch=1))
        return MemoryPlan(workload(ones, arch, on_gpu=False), 2, PROCESS).colocated().total

    config = dataclasses.replace(CONFIG, conditions=2, rollout=RolloutConfig(group=2))
    flags = {"learner": dataclasses.replace(config.learner, recompute=True), "precision": "bf16"}
    alone, both = dataclasses.replace(config, precision="bf16"), dataclasses.replace(config, **flags)
    assert need(both) < need(alone)
    budget = int((need(alone) + need(both)) / 2 / (1 - RESERVE["cpu"]))
    shortage = choose(config, arch, dict.fromkeys(ROLES, budget), on_gpu=False).shortage
    assert shortage is not None
    assert " with --recompute --precision bf16" in shortage
    assert "--precision bf16 --lora-rank" not in shortage
    assert choose(both, arch, dict.fromkeys(ROLES, budget), on_gpu=False).shortage is None
