"""bf16: what is multiplied is rounded; weights, adapters, their gradients, residual stream and logits are not."""

from __future__ import annotations

import dataclasses

import pytest
import small_model
import torch

from learner.grpo.config import LearnerConfig
from learner.grpo.update import GrpoLearner, LogprobMismatch, usual_mismatch
from learner.lesson import Lesson
from rollout.config import RolloutConfig
from rollout.sampler import ConditionCache, GroupSampler
from stylevar.adapters import Adapters
from stylevar.attention import SHORT, attend
from stylevar.contracts import PolicyVersion

VERSION = PolicyVersion(0, 0)


def adapted(bf16: bool) -> Adapters:
    adapters = small_model.adapt(small_model.build())
    if bf16:
        adapters.model.compute_in(torch.bfloat16)
    return adapters


def outcome(bf16: bool, recorded_off: float = 0.0, **settings) -> tuple[Adapters, dict[str, torch.Tensor]]:
    """Gradients of the adapters after an update's forward and backward pass on fixed tokens.

    `recorded_off` is added to the log-probs that the rollout recorded, as a rollout that computes otherwise would.
    """
    adapters = adapted(bf16)
    model = adapters.model
    batch = small_model.batch(model, 2)
    with adapters.effective_weights():
        drawn = GroupSampler(model, RolloutConfig(group=4, top_k=20)).sample(batch, seed=0, step=0, version=VERSION)
        drawn = dataclasses.replace(drawn, logp=drawn.logp + recorded_off)
        learner = GrpoLearner(adapters, LearnerConfig(lora_rank=4, **settings))
        state = ConditionCache(model).get(batch)
        rewards = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
        lesson = Lesson(state, drawn, learner.reference(state, drawn), rewards)
        kept: dict[str, torch.Tensor] = {}
        learner.optimizer.step = lambda *args: keep_gradients(adapters, kept)  # type: ignore[method-assign]
        learner.update(0, [[lesson]])
    return adapters, kept


def keep_gradients(adapters: Adapters, kept: dict[str, torch.Tensor]) -> None:
    for name, parameter in adapters.model.named_parameters():
        if parameter.grad is not None:
            kept[name] = parameter.grad.clone()


def test_log_probs_stay_near_those_of_fp32():
    exact, rounded = (small_model.logits(adapted(bf16).model) for bf16 in (False, True))
    assert rounded.dtype == torch.float32
    difference = (exact.log_softmax(-1) - rounded.log_softmax(-1)).abs().max()
    assert 0 < difference < 0.2


def test_gradients_are_fp32_and_point_where_those_of_fp32_do():
    adapters, rounded = outcome(bf16=True)
    _, exact = outcome(bf16=False)
    assert {parameter.dtype for parameter in adapters.model.parameters()} == {torch.float32}
    assert rounded.keys() == exact.keys()
    first, second = (torch.cat([g.flatten() for g in some.values()]) for some in (exact, rounded))
    assert second.dtype == torch.float32
    assert first.norm() > 0
    assert torch.cosine_similarity(first, second, dim=0) > 0.98


def test_the_mismatch_guard_knows_the_precision():
    """A difference of 0.01 is an error in fp32 and within rounding in bf16, whatever this CPU's own rounding is."""
    assert usual_mismatch(adapted(False).model) == 1e-4
    assert usual_mismatch(adapted(True).model) == 0.5
    assert usual_mismatch(adapted(True).model, temperature=0.5) == 1.0
    assert usual_mismatch(adapted(True).model, temperature=2.0) == 0.5
    with pytest.raises(LogprobMismatch):
        outcome(bf16=False, recorded_off=0.01)
    outcome(bf16=True, recorded_off=0.01)
    with pytest.raises(LogprobMismatch):
        outcome(bf16=True, recorded_off=0.01, mismatch_limit=1e-3)


def test_merging_adapters_into_the_base_keeps_every_bit_of_it():
    rounded, exact = adapted(True), adapted(False)
    for adapters in (rounded, exact):
        with adapters.effective_weights():
            adapters.refresh()
        adapters.bake()
    assert rounded.fingerprint() == exact.fingerprint()


@pytest.mark.parametrize("keys", [SHORT // 4, SHORT + 4])
def test_bf16_attention_has_the_values_and_gradients_of_fp32(keys: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 20, 64), (2, 3, keys, 64), (2, 3, keys, 64)]
    drawn = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    bias = torch.zeros(20, keys).masked_fill(torch.ones(20, keys).triu(keys // 2).bool(), -torch.inf)
    outcomes = []
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = inputs = [0.3 * tensor.to(dtype) for tensor in drawn]
        for tensor in inputs:
            tensor.requires_grad_(True)
        mixed = attend(q, k, v, bias.to(dtype))
        outcomes.append([mixed, *torch.autograd.grad(mixed.float().square().sum(), inputs)])
    for exact, rounded in zip(*outcomes, strict=True):
        assert rounded.dtype == torch.bfloat16
        assert (exact - rounded.float()).norm() < 0.02 * exact.norm()
