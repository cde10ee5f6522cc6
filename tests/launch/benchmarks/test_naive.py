"""The naive model, written from the equations alone, and the project's own say the same."""

from __future__ import annotations

import pytest
import small_model
import torch
from torch import Tensor

from launch.benchmarks.compare import naive_flops
from launch.benchmarks.naive import NaiveModel
from launch.sizing.phases import Workload
from learner.grpo.config import LearnerConfig
from reward.config import RewardConfig
from rollout.config import RolloutConfig
from rollout.sampler import GroupSampler
from stylevar.conditions import encode_conditions, guide_queries, teacher_forced_features
from stylevar.contracts import PolicyVersion
from stylevar.images import u8_to_pm1
from stylevar.logprobs import token_logprobs
from stylevar.sampling import SharedStream, TrajectoryStreams
from stylevar.sampling_config import SamplingConfig
from stylevar.transformer import StyleVAR

SAMPLING = SamplingConfig(top_k=20, top_p=0.9)


@pytest.fixture
def model() -> StyleVAR:
    return small_model.build()


def own_logprobs(model: StyleVAR, style: Tensor, content: Tensor, tokens: Tensor) -> Tensor:
    """[N, L], as a learner computes them."""
    state = encode_conditions(model, style, content)
    x = teacher_forced_features(model, state, guide_queries(model, state), tokens.unsqueeze(1))
    return token_logprobs(model.head, model.head_input(x, state.head_adaln), tokens.unsqueeze(1))[0].squeeze(1)


def test_log_probs_of_policy_and_reference_are_equal(model):
    adapters = small_model.adapt(model)
    style, content, tokens = small_model.inputs(model)
    naive = NaiveModel(model)
    with torch.no_grad():
        reading = naive.read(style, content)
        policy = naive.logprobs(reading, tokens)
        naive.adapted = False
        reference = naive.logprobs(reading, tokens)
        assert (policy - reference).abs().max() > 0.01
        torch.testing.assert_close(policy, own_logprobs(model, style, content, tokens), atol=1e-4, rtol=0)
        with adapters.off():
            torch.testing.assert_close(reference, own_logprobs(model, style, content, tokens), atol=1e-4, rtol=0)


def test_gradients_of_the_adapters_are_equal(model):
    adapters = small_model.adapt(model)
    style, content, tokens = small_model.inputs(model)
    weights = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0))
    naive = NaiveModel(model)
    with torch.no_grad():
        reading = naive.read(style, content)
    gradients = []
    for logprobs in (naive.logprobs(reading, tokens), own_logprobs(model, style, content, tokens)):
        (weights * logprobs).sum().backward()
        gradients.append([parameter.grad for parameter in adapters.parameters()])
        for parameter in adapters.parameters():
            parameter.grad = None
    for theirs, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-3)


def test_a_group_sampled_one_by_one_has_the_same_tokens(model):
    small_model.adapt(model)
    batch = small_model.batch(model, count=2)
    settings = RolloutConfig(group=3, top_k=SAMPLING.top_k, top_p=SAMPLING.top_p)
    drawn = GroupSampler(model, settings).sample(batch, seed=1, step=0, version=PolicyVersion(0, 0))
    naive = NaiveModel(model)
    for b in range(2):
        with torch.no_grad():
            reading = naive.read(u8_to_pm1(batch.style[b : b + 1]), u8_to_pm1(batch.content[b : b + 1]))
        for g in range(3):
            stream = TrajectoryStreams(drawn.seeds[b : b + 1, g : g + 1], model.arch.tokens, model.device)
            sampled = naive.sample(reading, stream, SAMPLING)
            assert torch.equal(sampled.tokens[0], drawn.tokens[b, g].long())
            torch.testing.assert_close(sampled.logp[0], drawn.logp[b, g], atol=1e-4, rtol=0)


def test_a_batch_of_pairs_has_the_same_tokens_and_pictures(model):
    style, content, _ = small_model.inputs(model, count=3)
    images, tokens = model.autoregressive_infer(
        3, style, content, g_seed=5, top_k=SAMPLING.top_k, top_p=SAMPLING.top_p, return_tokens=True
    )
    naive = NaiveModel(model)
    with torch.no_grad():
        sampled = naive.sample(naive.read(style, content), SharedStream(5, model.device), SAMPLING)
    assert torch.equal(sampled.tokens, torch.cat(tokens, dim=1))
    torch.testing.assert_close(model.vae.fhat_to_img(sampled.f_hat).add(1).mul(0.5), images, atol=1e-4, rtol=0)


def test_naive_work_is_that_of_the_equations(model):
    """22 C^2 per token and layer, adaLN per layer and trajectory, attention of both streams."""
    arch = model.arch
    rank = 4
    work = Workload(arch, LearnerConfig(lora_rank=rank), RolloutConfig(group=2), RewardConfig())
    length, width, depth = arch.tokens, arch.width, arch.depth
    residual = arch.scales * 9 * arch.Cvae**2 * arch.patch_nums[-1] ** 2
    ends = residual + (length - 1) * arch.Cvae * width + width * arch.V * length + 2 * width**2
    layer = 22 * width**2 * length + 6 * width**2 + 2 * 2 * length**2 * width
    flops = naive_flops(work)
    assert flops["reference"] == 2 * (depth * layer + ends)
    # Six projections, of queries, keys and values at once, and both of the way back are made anew by every call.
    made = depth * rank * (4 * width * 3 * width + 2 * width**2 + 2 * 4 * width**2)
    assert flops["update forward"] == flops["reference"] + 2 * made
