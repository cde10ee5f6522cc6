"""What the benchmark of gradient credit reports: fits of a line, replayed tokens, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from grpo_files import write_inputs

from data.conditions import TRAIN, ConditionSets
from launch.benchmarks import credit
from launch.benchmarks.config import Credit
from launch.benchmarks.credit import Fit, Replayed, Trial
from reward.config import RewardConfig
from reward.scorer import build_scorer
from rollout.config import RolloutConfig
from stylevar.logprobs import CodeValues
from stylevar.policy import Policy, PolicySource
from stylevar.sampling import CoupledStreams


def test_the_fit_of_a_line_through_zero():
    predicted = torch.tensor([1.0, -2.0, 3.0])
    exact = Fit.of(predicted, 2 * predicted)
    assert (exact.slope, exact.error, exact.correlation) == pytest.approx((2, 0, 1))
    # slope = (1 * 1 + 1 * 3) / 2, error = sqrt(1 + 1) / 2
    noisy = Fit.of(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 3.0]))
    assert (noisy.slope, noisy.error) == pytest.approx((2, 2**0.5 / 2))


def test_a_replayed_stream_gives_the_later_tokens_their_own_numbers():
    seeds, length = torch.tensor([[3, 4]]), 5
    probs = torch.full((1, 2, 5, 11), 1 / 11)
    whole = CoupledStreams(seeds, length, torch.device("cpu"))
    early, late = whole.draw(probs[:, :, :2], slice(0, 2)), whole.draw(probs[:, :, :3], slice(2, 5))
    given = torch.full((1, 2, length), 7)
    replayed = Replayed(given, 2, CoupledStreams(seeds, length, torch.device("cpu")))
    assert torch.equal(replayed.draw(probs[:, :, :2], slice(0, 2)), given[..., :2])
    assert torch.equal(replayed.draw(probs[:, :, :3], slice(2, 5)), late)
    assert not torch.equal(early, given[..., :2])


def settings(inputs: Path) -> Credit:
    return Credit(
        init=str(inputs / "sft"),
        vae=str(inputs / "sft"),
        shards=(str(inputs / "train-*.tar"),),
        rollout=RolloutConfig(group=3, top_k=20),
        reward=RewardConfig(reward="lite"),
        batches=2,
        conditions=2,
        device="cpu",
        threads=1,
        json=True,
    )


def test_a_reward_that_the_credit_describes_is_predicted_exactly(tmp_path, monkeypatch):
    """Quadratic in each token's vector: every change has a slope of one."""
    bench = settings(write_inputs(tmp_path))
    policy = Policy(PolicySource(bench.init, bench.vae, 1, 0), torch.device("cpu"))
    trial = Trial(policy, build_scorer(bench.reward, "cpu", "gradient"), bench)
    quantize, generator = policy.model.vae.quantize, torch.Generator().manual_seed(0)
    codebook, sides = quantize.embedding.weight.detach(), torch.tensor(policy.model.arch.patch_nums)
    slopes = torch.randn(policy.model.arch.tokens, codebook.shape[1], generator=generator)
    curvature = torch.rand(len(sides), generator=generator)
    of_token = curvature.repeat_interleave(sides.square())
    sampled: list[torch.Tensor] = []

    def assign(lessons):
        sampled[:] = [codebook[lessons[0].trajectories.tokens.long()]]
        return [SimpleNamespace(codes=CodeValues(slopes.expand_as(sampled[0]), codebook, of_token))]

    def reward(tokens, batch):
        vectors = codebook[tokens]
        penalty = of_token / 2 * (vectors - sampled[0]).square().sum(-1)
        return ((vectors * slopes).sum(-1) - penalty).double().sum(-1)

    monkeypatch.setattr(trial, "credit", SimpleNamespace(assign=assign, curvature=lambda: curvature))
    monkeypatch.setattr(trial, "_reward", reward)
    sets = ConditionSets({TRAIN: bench.shards}, policy.image_size, policy.vae_fingerprint, 2, 0, "lite")
    with torch.no_grad():
        trial.add(0, sets.of_step(0))
    for scale in trial.result().scales:
        assert (scale.fixed.slope, scale.fixed.correlation) == pytest.approx((1, 1), rel=1e-3)


def test_a_token_is_replaced_by_another_code(tmp_path):
    bench = settings(write_inputs(tmp_path))
    policy = Policy(PolicySource(bench.init, bench.vae, 1, 0), torch.device("cpu"))
    trial = Trial(policy, build_scorer(bench.reward, "cpu", "gradient"), bench)
    tokens, at = torch.full((1, 3, 4), 5), torch.zeros(1, 3, dtype=torch.long)
    logits = torch.zeros(1, 3, 4, 32)
    logits[..., 5] = 20.0
    assert (trial._other_codes(logits, tokens, at) != 5).all()


def test_a_run_reports_every_scale(tmp_path, capsys):
    credit.run(settings(write_inputs(tmp_path)))
    result = json.loads(capsys.readouterr().out)
    assert result["replaced"] == 2 * 2 * 3
    assert sum(scale["share"] for scale in result["scales"]) == pytest.approx(1)
    first, *_, last = result["scales"]
    assert first["fixed"] != first["redrawn"]
    assert last["fixed"] == last["redrawn"]  # no scale follows
