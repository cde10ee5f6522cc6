"""FLOPs counted in the run's own code, against closed forms and the budget of the design."""

from __future__ import annotations

from dataclasses import replace

import pytest
import small_model
import torch
from torch.utils.flop_counter import FlopCounterMode

from launch.sizing.flops import Flops, _measure, _reward, count_flops
from launch.sizing.phases import META, Phases, Workload, over_depth
from learner.grpo.config import LearnerConfig
from reward.config import RewardConfig
from rollout.config import RolloutConfig
from stylevar.build import build_shapes
from stylevar.config import ModelConfig

GIGA = 1e9
SMALL = ModelConfig(patch_nums=(1, 2, 4), V=40, Cvae=8, ch=32, ch_mult=(1, 1), depth=3, style_enc_dim=32, alphas=(0.5,) * 3)


def work(arch: ModelConfig = SMALL, reward: str = "lite", rank: int = 4) -> Workload:
    return Workload(arch, LearnerConfig(lora_rank=rank), RolloutConfig(), RewardConfig(reward=reward))  # type: ignore[arg-type]


def token_products(arch: ModelConfig) -> int:
    """Multiply-adds of one pass over a trajectory, without attention: 11 C^2 per token and layer, embedding, head."""
    residual = arch.scales * 9 * arch.Cvae**2 * arch.patch_nums[-1] ** 2  # phi, one 3x3 convolution per scale
    embedding = (arch.tokens - 1) * arch.Cvae * arch.width
    return arch.depth * 11 * arch.width**2 * arch.tokens + embedding + arch.width * arch.V * arch.tokens + residual


def dense_attention(arch: ModelConfig) -> int:
    """Two streams of L queries over L keys, two products."""
    return arch.depth * 2 * 2 * arch.tokens**2 * arch.width


@pytest.fixture(scope="module")
def counted() -> dict[str, int]:
    return over_depth(work(), _measure)


def test_the_published_size_lies_within_the_budget():
    flops = count_flops(work(ModelConfig(), reward="dreamsim", rank=256)).per_trajectory(16)
    assert 500 * GIGA < flops["rollout"] <= 570 * GIGA
    assert round(flops["decode"] / GIGA) == 394
    assert 30 * GIGA < flops["reward"] <= 40 * GIGA
    assert 500 * GIGA < flops["reference"] <= 610 * GIGA
    assert 1400 * GIGA < flops["update forward"] + flops["update backward"] <= 1700 * GIGA


def test_forward_passes_equal_their_closed_forms(counted):
    length, width = SMALL.tokens, SMALL.width
    # The last scale's residual is not part of the teacher's input, but is computed with the rest.
    assert counted["forward"] == 2 * (token_products(SMALL) + dense_attention(SMALL))
    seen, cached = 0, 0
    for side in SMALL.patch_nums:
        seen += side**2
        cached += 2 * 2 * side**2 * seen * width
    assert counted["rollout"] == 2 * (token_products(SMALL) + SMALL.depth * cached)
    assert counted["queries"] == 2 * SMALL.depth * 2 * length * width**2


def test_the_backward_pass_with_factored_gradients_equals_its_closed_form(counted):
    """Per adapted layer: dx, and r (2 out + 2 in) for the two factors, of the rows in use. No dense weight gradient."""
    rank, length, width, depth = 4, SMALL.tokens, SMALL.width, SMALL.depth
    used = [(width, 2 * width), (width, width), (width, 4 * width), (4 * width, width)]
    factors = depth * length * sum(2 * rank * (inside + outside) for inside, outside in used)
    # The first layer's keys and values are of the embedding, which is frozen.
    inputs = (depth * 11 - 2) * width**2 * length
    head = width * SMALL.V * length
    assert counted["backward"] == 2 * (factors + inputs + 2 * dense_attention(SMALL))
    assert counted["head_backward"] == 2 * head
    assert counted["queries_backward"] == 2 * depth * 2 * length * 2 * rank * (2 * width)
    effective = depth * rank * sum(inside * outside for inside, outside in [*used, (width, width)])
    assert counted["effective_weights"] == 2 * effective


def test_two_blocks_stand_for_all(counted):
    assert counted == _measure(Phases(work()))


def test_known_tokens_save_the_vq_encoder():
    counted, known = (_measure(Phases(replace(work(), tokens_known=known), blocks=1)) for known in (False, True))
    vae, _ = build_shapes(SMALL)
    images = torch.empty(2, 3, SMALL.image_size, SMALL.image_size, device=META)
    with FlopCounterMode(display=False) as counter:
        vae.img_to_idxBl(images)
    assert counted["encode"] - known["encode"] == counter.get_total_flops()
    assert counted["encode_again"] == known["encode"]


def test_shared_work_is_spread_over_the_group_and_a_step_multiplies():
    flops = Flops(
        encode=80,
        encode_again=40,
        queries=16,
        queries_backward=8,
        target=24,
        effective_weights=5,
        rollout=7,
        decode=3,
        reward=2,
        credit=0,
        forward=6,
        head_backward=4,
        backward=9,
    )
    each = flops.per_trajectory(8)
    assert each == {
        "condition": 10,
        "rollout": 9,
        "decode": 3,
        "reward": 5,
        "reference": 8,
        "update forward": 12,
        "update backward": 10,
    }
    step = flops.per_step(conditions=2, group=8, passes=3, optimizer_steps=6, copies=2)
    phases = ("condition", "rollout", "update forward", "effective weights")
    assert [step[phase] for phase in phases] == [320, 144, 576, 35]


def test_the_reward_embeds_a_target_once():
    """DreamSim's ViT-B/16 on 14 x 14 patches and a class token: 12 C^2 per token and layer, attention, patch embedding."""
    width, tokens = 768, 14 * 14 + 1
    vit = 12 * (12 * width**2 * tokens + 2 * width * tokens**2) + (tokens - 1) * 16 * 16 * 3 * width
    counts = _reward(work(reward="dreamsim"))
    assert counts["target"] == pytest.approx(2 * vit, rel=1e-3)  # the metrics build their windows, too
    assert 2 * vit < counts["reward"] < 2.2 * vit


def test_models_of_every_kind_can_be_counted():
    shape = {"patch_nums": (1, 2), "depth": 1, "shared_aln": True, "share_quant_resi": 1, "attn_l2_norm": False}
    settings = RolloutConfig(kv_cache="paper", logprob="support", temperature=0.5)
    kind = Workload(small_model.build(**shape).arch, LearnerConfig(credit="gradient"), settings, RewardConfig())
    assert all(n > 0 for n in over_depth(kind, _measure).values())


@pytest.mark.slow
def test_a_sum_of_distances_counts_all_of_them_without_their_weights():
    lpips, lite, both = (_reward(work(ModelConfig(), name)) for name in ("lpips", "lite", "lite=1,lpips=1"))
    assert lpips["target"] > 0
    # Metrics beside the reward are counted once, and comparing features is no product.
    assert both["target"] == pytest.approx(lpips["target"] + lite["target"], rel=1e-2)
    assert all(_reward(work(ModelConfig(), name))["reward"] > 0 for name in ("style=1,cfsd=1", "clip", "dino", "ssim"))


def test_a_users_own_reward_is_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="does not count .* users:Mine"):
        assert _reward(work(reward="users:Mine"))["reward"] >= 0


@pytest.mark.slow
def test_gradient_credit_adds_a_backward_pass_of_decoder_and_reward():
    arch = small_model.build().arch
    plain, with_gradient = (
        count_flops(Workload(arch, LearnerConfig(lora_rank=4, credit=credit), RolloutConfig(group=2), RewardConfig()))
        for credit in ("trajectory", "gradient")
    )
    assert plain.credit == 0
    assert "credit" not in plain.per_trajectory(2)
    # Forward again, and back to the input alone, which takes as much.
    assert with_gradient.per_trajectory(2)["credit"] == pytest.approx(2 * plain.decode, rel=0.2)
    assert with_gradient.reward == pytest.approx(2 * plain.reward, rel=0.2)
    assert with_gradient.target == plain.target
