"""Memory by component: what autograd keeps and what is live against real runs, and closed forms for the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import small_model
import torch
from torch import Tensor

from launch.sizing.memory import (
    ALWAYS,
    Batches,
    Component,
    MemoryPlan,
    RoleMemory,
    _measure,
    measure,
    parameter_counts,
    saved_activations,
)
from launch.sizing.phases import Phases, Workload
from launch.sizing.trace import peak_bytes, saved_bytes
from learner.credit.gradient import token_slopes
from learner.grpo.config import LearnerConfig
from learner.grpo.update import GrpoLearner
from learner.lesson import Lesson
from reward.config import RewardConfig
from reward.scorer import build_scorer
from rollout.config import RolloutConfig
from rollout.sampler import GroupSampler
from stylevar.cache import KVCache
from stylevar.conditions import ConditionState, guide_queries
from stylevar.config import ModelConfig
from stylevar.contracts import PolicyVersion, References
from stylevar.lowrank import kept_effective

RANK, GROUP = 4, 3


@pytest.fixture(scope="module")
def work() -> Workload:
    arch = small_model.build(patch_nums=(1, 2, 4), V=96, depth=3).arch
    settings = LearnerConfig(lora_rank=RANK), RolloutConfig(group=GROUP), RewardConfig()
    return Workload(arch, *settings)


@pytest.fixture(scope="module")
def plan(work) -> MemoryPlan:
    return MemoryPlan(work, conditions=2, process=10**6)


def given(sampler: GroupSampler, state: ConditionState) -> list[Tensor]:
    model = sampler.model
    effective = [w for w in (kept_effective(module) for module in model.modules()) if w is not None]
    rest = [state.start, state.guides, state.head_adaln, *state.adaln]
    return [*model.parameters(), *model.buffers(), *model.vae.parameters(), *effective, *rest]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("depth", "group"), [(1, 2), (3, 3), (2, 6)])
def test_a_real_update_keeps_what_the_plan_says(depth, group, recompute):
    """One condition, one micro-batch, from the learner's own update on the CPU."""
    model = small_model.build(patch_nums=(1, 2, 4), V=96, depth=depth)
    settings = LearnerConfig(lora_rank=RANK, recompute=recompute)
    work = Workload(model.arch, settings, RolloutConfig(group=group), RewardConfig())
    adapters = small_model.adapt(model, RANK)
    sampler, learner = GroupSampler(model, work.rollout), GrpoLearner(adapters, work.learner)
    batch = small_model.batch(model, 1)
    state = sampler.conditions.get(batch)
    with adapters.effective_weights():
        trajectories = sampler.sample(batch, 0, 0, PolicyVersion(0, 0))
        lesson = Lesson(state, trajectories, learner.reference(state, trajectories), torch.randn(1, group))
        forward = lambda: learner.update(0, lesson.split(1))  # noqa: E731
        # Blocks that run again in the backward pass hold one block's activations then, which is no part of this.
        if recompute:
            queries = guide_queries(model, state)
            forward = lambda: (  # noqa: E731
                guide_queries(model, state),
                learner.terms_to_learn(state, [q.detach().requires_grad_() for q in queries], trajectories.tokens, None),
            )
        _, saved = saved_bytes(forward, given(sampler, state))
    assert saved_activations(work, group) == pytest.approx(saved, rel=0.1)


def test_real_phases_hold_what_the_plan_says(work, plan):
    """The same tracker on real tensors, whose kernels are others."""
    model = small_model.build(patch_nums=(1, 2, 4), V=96, depth=3)
    adapters = small_model.adapt(model, RANK)
    sampler, learner = GroupSampler(model, work.rollout), GrpoLearner(adapters, work.learner)
    batch = small_model.batch(model, 2)
    measured = plan.measured
    state, encode = peak_bytes(lambda: sampler.conditions.get(batch))
    one = state.select(slice(0, 1))
    assert measured["encode"] == pytest.approx(encode, rel=0.1)
    with adapters.effective_weights():
        trajectories, sampled = peak_bytes(lambda: sampler.sample(batch, 0, 0, PolicyVersion(0, 0)))
        expected = measured["queries"] + max(measured["sample"], measured["decode"])
        assert expected == pytest.approx(sampled, rel=0.1)

        def update() -> None:
            queries = guide_queries(model, one)
            leaves = [q.detach().requires_grad_() for q in queries]
            learner.logprobs(one, leaves, trajectories.tokens[:1], None)[0].sum().backward()
            torch.autograd.backward(queries, [leaf.grad for leaf in leaves if leaf.grad is not None])

        assert measured["update"] == pytest.approx(peak_bytes(update)[1], rel=0.1)


def test_two_blocks_stand_for_all(work, plan):
    phases = Phases(work)
    assert _measure(phases, GROUP, 2).items() <= plan.measured.items()
    state = phases.encode(2, tokens_known=True)
    with phases.adapters.effective_weights():
        queries = phases.queries(state)
        assert peak_bytes(lambda: phases.sample(state, queries, GROUP))[1] == plan.measured["sample"]


def test_weights_and_optimizer_follow_from_the_parameters(work, plan):
    """fp32: adapters once, moments and snapshots twice each, gradients once; effective weights of the rows in use."""
    sizes = {part.name: part.bytes for part in plan.colocated().components}
    width, depth = work.arch.width, work.arch.depth
    adapters = 4 * depth * RANK * ((3 + 1) * 2 + (1 + 1) + (4 + 1) * 2) * width
    assert sizes["adapters"] == sizes["gradients"] == adapters
    assert sizes["optimizer moments"] == sizes["adapter snapshots (peak, best)"] == 2 * adapters
    assert sizes["effective weights"] == 4 * depth * (1 + 2 + 1 + 4 + 4) * width**2
    model = small_model.build(patch_nums=(1, 2, 4), V=96, depth=3)
    assert sizes["transformer"] == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert sizes["VQ-VAE"] == sum(t.nbytes for t in (*model.vae.parameters(), *model.vae.buffers()))
    cache = KVCache(depth, 2, GROUP, work.arch.depth, work.arch.tokens, torch.device("cpu"), torch.float32)
    assert sizes["KV cache"] == cache.store.nbytes
    counts = parameter_counts(work)
    assert counts["adapters"] == adapters / 4
    assert counts["transformer"] == sum(p.numel() for p in model.parameters())


def test_a_role_needs_what_is_always_there_and_its_largest_phase():
    parts = (Component("weights", 5), Component("a", 3, "one"), Component("b", 4, "one"), Component("c", 6, "two"))
    memory = RoleMemory(parts)
    assert memory.phases == {"one": 7, "two": 6}
    assert memory.total == 12
    assert RoleMemory(parts[:1]).total == 5


def test_colocated_is_the_union_with_one_copy_of_the_weights(plan):
    together = plan.colocated().components
    roles = (plan.rollout(), plan.reward_worker(), plan.learner(2))
    names = [(part.name, part.phase) for part in together]
    assert len(set(names)) == len(names)
    assert {(part.name, part.phase) for role in roles for part in role.components} == set(names)
    assert plan.colocated().total < sum(role.total for role in roles)
    assert [p.name for p in plan.reward_worker().components if p.phase == ALWAYS] == [
        "interpreter and libraries",
        "reward model",
    ]


def test_micro_batches_bound_the_saved_activations():
    work = Workload(
        small_model.build(depth=1).arch, LearnerConfig(lora_rank=RANK), RolloutConfig(group=GROUP), RewardConfig()
    )
    single, pair, whole = (saved_activations(work, g) for g in (1, 2, GROUP))
    assert whole - pair == pair - single > 0
    assert single > pair - single  # the group's queries
    measured = measure(work, Batches(micro=1, rollout=GROUP, images=GROUP), 1)
    assert measured["saved"] == single
    assert measured["update"] < whole


def test_recomputed_blocks_keep_their_inputs_alone(work):
    """Saved bytes grow by an input [G, L, C] a block, and the queries that all blocks' trajectories share."""
    deeper = replace(work.arch, depth=work.arch.depth + 1)
    again = replace(work, learner=replace(work.learner, recompute=True))
    added = saved_activations(replace(again, arch=deeper), GROUP) - saved_activations(again, GROUP)
    # Fewer than the eight and more of these that a block keeps otherwise. The width grows with the depth, too.
    plain = saved_activations(replace(work, arch=deeper), GROUP) - saved_activations(work, GROUP)
    assert added < plain / 2


@pytest.mark.slow
def test_bf16_and_an_optimizer_in_the_hosts_memory_take_less(work):
    gpu = replace(work, on_gpu=True)
    sizes = {p.name: p.bytes for p in MemoryPlan(gpu, 2).colocated().components}
    halved = {p.name: p.bytes for p in MemoryPlan(replace(gpu, precision="bf16"), 2).colocated().components}
    for name in ("KV cache", "effective weights"):
        assert halved[name] == sizes[name] / 2
    assert halved["transformer"] == sizes["transformer"]
    on_host = replace(gpu, learner=replace(work.learner, optimizer_device="cpu"))
    assert sizes.keys() - {p.name for p in MemoryPlan(on_host, 2).colocated().components} == {"optimizer moments"}


def test_the_published_size_fits_where_it_is_said_to():
    """Micro-batches of one trajectory keep 1.1 GB of activations, those of the group's queries among them."""
    arch = ModelConfig()
    work = Workload(arch, LearnerConfig(micro_batch=1), RolloutConfig(rollout_batch=16, decode_batch=16), RewardConfig())
    plan = MemoryPlan(work, conditions=16)
    sizes = {part.name: part.bytes / 1e9 for part in plan.colocated().components}
    assert sizes["transformer"] == pytest.approx(721_000_720 * 4 / 1e9, rel=0.01)
    assert 1.0 < sizes["saved activations"] < 1.2
    assert plan.colocated().total < 48e9


def test_gradient_credit_takes_what_the_plan_says():
    """The decoder with its backward pass, and the reward with its own, on real tensors."""
    model = small_model.build(patch_nums=(1, 2, 4), V=96, depth=1)
    settings = LearnerConfig(lora_rank=RANK, credit="gradient", credit_batch=3)
    work = Workload(model.arch, settings, RolloutConfig(group=GROUP), RewardConfig())
    plan = MemoryPlan(work, conditions=2)
    size = model.arch.image_size
    tokens, gradient = torch.zeros(6, model.arch.tokens, dtype=torch.int64), torch.randn(6, 3, size, size)
    _, back = peak_bytes(lambda: token_slopes(model.vae, tokens[:3], gradient[:3].bfloat16(), 3))
    assert plan.measured["credit"] == pytest.approx(back, rel=0.1)
    images = torch.zeros(2, GROUP, 3, size, size, dtype=torch.uint8)
    references = References(images[:, 0], images[:, 0], images[:, 0])
    scorer = build_scorer(work.reward)
    for credit, detail in (("gradient", "gradient"), ("trajectory", "none")):
        planned = MemoryPlan(replace(work, learner=replace(settings, credit=credit)), conditions=2)
        (activations,) = (c.bytes for c in planned.colocated().components if c.name == "reward activations")
        _, scored = peak_bytes(lambda detail=detail: scorer.score(images, references, detail))
        assert activations == pytest.approx(scored, rel=0.15)
    parts = {component.name: component.bytes for component in plan.colocated().components}
    assert parts["decoder and its backward"] == plan.measured["credit"]
    assert parts["reward gradients"] == 2 * gradient[:1].numel() * 2 * GROUP
    assert parts["slopes of the tokens"] == 4 * model.arch.Cvae * model.arch.tokens * 2 * GROUP
