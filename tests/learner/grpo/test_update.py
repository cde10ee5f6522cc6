"""The learner against the golden GRPO gradients, and the step's behaviour."""

from __future__ import annotations

import dataclasses
import re
from contextlib import nullcontext

import golden_model
import pytest
import small_model
import torch
from golden_model import condition_major, tensors

from learner.grpo.config import LearnerConfig
from learner.grpo.loss import grpo_loss
from learner.grpo.panw import panw_weights
from learner.grpo.update import GrpoLearner, LogprobMismatch
from learner.lesson import Lesson
from rollout.config import RolloutConfig
from rollout.sampler import GroupSampler
from stylevar.adapters import Adapters
from stylevar.conditions import encode_conditions, guide_queries
from stylevar.contracts import PolicyVersion, Scores, Trajectories


@pytest.fixture
def golden():
    return tensors()


def golden_adapters(rank: int = 4) -> Adapters:
    adapters = Adapters(golden_model.build()[1], rank=rank)
    with torch.no_grad():
        for name, layer in adapters.layers.items():
            name = name.removeprefix("base_model.model.")
            for part in ("lora_A", "lora_B"):
                weight = getattr(layer, part)["default"].weight
                weight.copy_(golden_model.fill(f"{name}.{part}", tuple(weight.shape)))
    return adapters


def trajectories(golden, adapters, tokens=None, logp=None) -> tuple:
    model = adapters.model
    with torch.no_grad():
        state = encode_conditions(model, golden["input.style"], golden["input.content"])
    tokens = condition_major(golden["grpo.tokens"]) if tokens is None else tokens
    b, g, length = tokens.shape
    learner = GrpoLearner(adapters, LearnerConfig(lora_rank=4))
    if logp is None:
        with torch.no_grad():
            logp = learner.logprobs(state, guide_queries(model, state), tokens, None)[0]
    rows = Trajectories(
        tuple(f"c{i}" for i in range(b)),
        tokens.to(torch.int16),
        logp,
        torch.zeros(b, g, length),
        torch.zeros(b, g, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(b, g, dtype=torch.long),
        PolicyVersion(0, 0),
    )
    return state, rows


def test_logprobs_with_and_without_adapters(golden):
    adapters = golden_adapters()
    state, rows = trajectories(golden, adapters)
    learner = GrpoLearner(adapters, LearnerConfig(lora_rank=4))
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(rows.logp, condition_major(golden["grpo.new_logprobs"]), **close)
    reference = learner.reference(state, rows)
    torch.testing.assert_close(reference, condition_major(golden["grpo.ref_logprobs"]), **close)


@pytest.mark.parametrize("variant", ["panw", "mean"])
@pytest.mark.parametrize("kept", [True, False])
def test_golden_loss_and_gradients(golden, variant, kept):
    adapters = golden_adapters()
    state, rows = trajectories(golden, adapters)
    learner = GrpoLearner(adapters, LearnerConfig(lora_rank=4, kl_estimator="paper"))
    weights = panw_weights((1, 2, 3, 4), 0.7) if variant == "panw" else torch.full((30,), 1 / 30)
    old, ref = (condition_major(golden[f"grpo.{name}_logprobs"]).flatten(0, 1) for name in ("old", "ref"))
    advantages = condition_major(golden["grpo.advantages"]).flatten()
    if kept:
        with adapters.effective_weights():
            new = learner.logprobs(state, guide_queries(adapters.model, state), rows.tokens, None)[0]
            terms = grpo_loss(new.flatten(0, 1), old, ref, advantages, weights, kl_kind="paper")
            terms.total.mean().backward()
    else:
        new = learner.logprobs(state, guide_queries(adapters.model, state), rows.tokens, None)[0]
        terms = grpo_loss(new.flatten(0, 1), old, ref, advantages, weights, kl_kind="paper")
        terms.total.mean().backward()
    assert terms.total.mean().item() == pytest.approx(golden[f"grpo.{variant}.loss"].item(), abs=1e-4)
    by_g = terms.policy.view(2, 4).mean(0)
    torch.testing.assert_close(by_g, golden[f"grpo.{variant}.policy_loss_per_g"], atol=1e-4, rtol=0)
    grads = {}
    for name, layer in adapters.layers.items():
        for part in ("lora_A", "lora_B"):
            grads[f"{name.removeprefix('base_model.model.')}.{part}"] = getattr(layer, part)["default"].weight.grad
    norms = torch.stack([grads[name].norm() for name in golden_model.meta()["grad_norm_order"]])
    torch.testing.assert_close(norms, golden[f"grpo.{variant}.grad_norms"], atol=1e-4, rtol=0)
    if variant == "panw":
        for name, grad in grads.items():
            torch.testing.assert_close(grad, golden[f"grpo.panw.grad.{name}"], atol=1e-4, rtol=0)


def scores(b=2, g=4):
    rewards = torch.sin(torch.arange(b * g).float() * 1.7).view(b, g)
    return Scores(rewards, {"total": -rewards / 5})


def update(learner, state, rows, scored=None, step=0):
    """One GRPO step on `rows`, with the rewards of `scored`."""
    lesson = Lesson(state, rows, learner.reference(state, rows), (scored or scores()).rewards)
    return learner.update(step, lesson.split(learner.config.minibatches))


def adapter_grads_of_update(adapters, state, rows, **config):
    """The gradient an update accumulates, read from the optimizer's first moment after one step."""
    learner = GrpoLearner(adapters, LearnerConfig(lora_rank=4, grad_clip=1e9, **config))
    update(learner, state, rows)
    return [learner.optimizer.state[p]["exp_avg"].clone() for p in adapters.parameters()]


def test_micro_batches_do_not_change_the_gradient(golden):
    whole, parts = golden_adapters(), golden_adapters()
    state, rows = trajectories(golden, whole)
    expected = adapter_grads_of_update(whole, state, rows)
    actual = adapter_grads_of_update(parts, *trajectories(golden, parts), micro_batch=1)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kept", [True, False])
def test_recomputed_blocks_give_the_same_gradient(kept):
    gradients = []
    for recompute in (False, True):
        model = small_model.build(depth=2)
        adapters = small_model.adapt(model)
        sampler = GroupSampler(model, RolloutConfig(group=3))
        batch = small_model.batch(model, 2)
        config = LearnerConfig(lora_rank=4, grad_clip=1e9, micro_batch=2, recompute=recompute)
        with adapters.effective_weights() if kept else nullcontext():
            rows, state = sampler.sample(batch, 0, 0, PolicyVersion(0, 0)), sampler.conditions.get(batch)
            learner = GrpoLearner(adapters, config)
            update(learner, state, rows, scores(2, 3))
        gradients.append([learner.optimizer.state[p]["exp_avg"] for p in adapters.parameters()])
        assert not any(block.recompute for block in model.blocks)
    assert all(map(torch.equal, *gradients))
    assert any(g.any() for g in gradients[0])


def test_first_update_is_exactly_on_policy(golden):
    adapters = golden_adapters()
    state, rows = trajectories(golden, adapters)
    result = update(GrpoLearner(adapters, LearnerConfig(lora_rank=4)), state, rows)
    assert result.metrics["policy/ratio_mean"] == 1.0
    assert result.metrics["policy/clip_frac"] == 0.0
    assert result.metrics["policy/logprob_mismatch_max"] < 1e-5
    assert result.metrics["guard/dropped"] == 0


def test_second_pass_has_a_real_ratio(golden):
    adapters = golden_adapters()
    state, rows = trajectories(golden, adapters)
    learner = GrpoLearner(adapters, LearnerConfig(lora_rank=4, lr=3e-3, updates_per_rollout=3))
    assert update(learner, state, rows).metrics["policy/ratio_mean"] != 1.0


def test_minibatches_must_divide_the_conditions(golden):
    adapters = golden_adapters()
    state, rows = trajectories(golden, adapters)
    from stylevar.errors import UserError

    with pytest.raises(UserError, match="--minibatches 3"):
        update(GrpoLearner(adapters, LearnerConfig(lora_rank=4, minibatches=3)), state, rows)


def test_mismatch_stops_with_step_scale_and_values(golden):
    adapters = golden_adapters()
    state, rows = trajectories(golden, adapters)
    rows.logp[1, 2, 20] += 0.01
    with pytest.raises(LogprobMismatch, match=re.escape("step 7: at scale 3 (token 20)")):
        update(GrpoLearner(adapters, LearnerConfig(lora_rank=4)), state, rows, step=7)


def test_a_rollback_lowers_the_learning_rate_for_good(golden):
    adapters = golden_adapters()
    state, rows = trajectories(golden, adapters)
    config = LearnerConfig(lora_rank=4, lr=1e-4, lr_backoff=0.25)
    learner, resumed = GrpoLearner(adapters, config), GrpoLearner(adapters, config)
    learner.back_off()
    learner.reset_optimizer()
    resumed.load_state_dict(learner.state_dict())
    for one in (learner, resumed):
        assert update(one, state, rows).metrics["lr"] == 0.25e-4
        assert one.optimizer.param_groups[0]["lr"] == 0.25e-4
        adapters.reset(0)
        state, rows = trajectories(golden, adapters)


def test_skipped_step_touches_nothing(golden):
    adapters = golden_adapters()
    state, rows = trajectories(golden, adapters)
    learner = GrpoLearner(adapters, LearnerConfig(lora_rank=4, kl_limit=1e-9, weight_decay=0.5))
    before = adapters.state()
    result = update(learner, state, rows)
    assert result.metrics["guard/skipped_steps"] == 1
    assert result.metrics["guard/dropped"] == 8
    assert result.metrics["kl/raw"] > 1e-9  # what was dropped is still told to the merge controller
    assert all(torch.equal(before[k], v) for k, v in adapters.state().items())


def test_a_dropped_trajectory_teaches_nothing(golden):
    """With one reward not finite its group is dropped, and the step equals the one on the other group alone."""
    spoiled, clean = golden_adapters(), golden_adapters()
    state, rows = trajectories(golden, spoiled)
    nan = scores()
    nan.rewards[0, 1] = float("nan")
    config = LearnerConfig(lora_rank=4)
    assert update(GrpoLearner(spoiled, config), state, rows, nan).metrics["guard/dropped"] == 4
    half = dataclasses.replace(rows, **{n: getattr(rows, n)[1:] for n in ("keys", "tokens", "logp", "kept_mass", "seeds")})
    kept = Scores(scores().rewards[1:], {})
    update(GrpoLearner(clean, config), state.select(slice(1, 2)), half, kept)
    for a, b in zip(spoiled.parameters(), clean.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-4)


def test_groups_of_equal_rewards_cost_no_backward_pass_without_a_kl_penalty(golden, monkeypatch):
    equal = dataclasses.replace(scores(), rewards=torch.ones(2, 4))
    equal.rewards[1, 0] = 2.0
    backwards = []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda *args, **kwargs: (backwards.append(1), backward(*args, **kwargs)))
    for beta, wanted in ((0.0, 1), (0.1, 2)):
        adapters = golden_adapters()
        state, rows = trajectories(golden, adapters)
        backwards.clear()
        update(GrpoLearner(adapters, LearnerConfig(lora_rank=4, kl_beta=beta)), state, rows, equal)
        assert len(backwards) == wanted
