"""The published arithmetic: PANW weights, advantages and both loss variants against stored vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from learner.credit.trajectory import group_advantages
from learner.grpo.loss import LossTerms, grpo_loss
from learner.grpo.panw import panw_weights

GOLDEN = Path(__file__).parents[2] / "golden" / "tiny_t.safetensors"
SCALES = (1, 2, 3, 4)
GROUP = 4


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


def test_panw_weights(golden):
    full = panw_weights((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    torch.testing.assert_close(full, golden["panw.weights_10scales_gamma0.7"][0], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(panw_weights(SCALES), golden["panw.weights_config_gamma0.7"][0], rtol=1e-5, atol=1e-7)


def test_advantages(golden):
    # Stored group-major: row g * B + b.
    rewards = golden["advantage.rewards_B3_G4"].view(4, 3).T
    expected = golden["advantage.advantages_B3_G4"].view(4, 3).T
    result = group_advantages(rewards)
    torch.testing.assert_close(result.values, expected, rtol=0, atol=1e-4)
    assert result.frac_zero_std == pytest.approx(1 / 3)


def test_group_of_the_stored_step(golden):
    rewards = golden["grpo.rewards"].view(GROUP, -1).T
    expected = golden["grpo.advantages"].view(GROUP, -1).T
    torch.testing.assert_close(group_advantages(rewards).values, expected, rtol=0, atol=1e-4)


def stored_loss(golden: dict[str, Tensor], weights: Tensor, new: Tensor | None = None) -> LossTerms:
    return grpo_loss(
        golden["grpo.new_logprobs"] if new is None else new,
        golden["grpo.old_logprobs"],
        golden["grpo.ref_logprobs"],
        golden["grpo.advantages"],
        weights,
        clip_eps=0.2,
        beta=0.1,
        kl_kind="paper",
    )


@pytest.mark.parametrize("variant", ["mean", "panw"])
def test_loss(golden, variant):
    weights = panw_weights(SCALES, gamma=0.0 if variant == "mean" else 0.7)
    terms = stored_loss(golden, weights)
    policy_per_g = terms.policy.view(GROUP, -1).mean(dim=1)
    kl_per_g = 0.1 * terms.raw_kl.view(GROUP, -1).mean(dim=1)
    torch.testing.assert_close(policy_per_g, golden[f"grpo.{variant}.policy_loss_per_g"], rtol=0, atol=1e-5)
    torch.testing.assert_close(kl_per_g, golden[f"grpo.{variant}.kl_loss_per_g"], rtol=0, atol=1e-5)
    torch.testing.assert_close(terms.total.mean(), golden[f"grpo.{variant}.loss"][0], rtol=0, atol=1e-5)


def test_stored_step_clips_on_both_sides(golden):
    terms = stored_loss(golden, panw_weights(SCALES))
    assert (terms.ratio_min < 0.8).any()
    assert (terms.ratio_max > 1.2).any()
    assert 0 < terms.clip_frac.mean() < 1


def test_micro_batches_give_the_whole_batch(golden):
    weights = panw_weights(SCALES)
    whole = golden["grpo.new_logprobs"].clone().requires_grad_()
    stored_loss(golden, weights, whole).total.mean().backward()
    parts = golden["grpo.new_logprobs"].clone().requires_grad_()
    for row in range(len(parts)):
        pick = {name: tensor[row : row + 1] for name, tensor in golden.items() if name.startswith("grpo.")}
        (stored_loss(pick, weights, parts[row : row + 1]).total.sum() / len(parts)).backward()
    torch.testing.assert_close(parts.grad, whole.grad)
