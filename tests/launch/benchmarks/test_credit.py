"""What the benchmark of gradient credit reports: fits of a line, replayed tokens, and a whole run."""

from __future__ import annotations

import json

import pytest
import torch
from grpo_files import write_inputs

from launch.benchmarks import credit
from launch.benchmarks.config import Credit
from launch.benchmarks.credit import Fit, Replayed
from reward.config import RewardConfig
from rollout.config import RolloutConfig
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


def test_a_run_reports_every_scale(tmp_path, capsys):
    inputs = write_inputs(tmp_path)
    bench = Credit(
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
    credit.run(bench)
    result = json.loads(capsys.readouterr().out)
    assert result["replaced"] == 2 * 2 * 3
    assert sum(scale["share"] for scale in result["scales"]) == pytest.approx(1)
    first, *_, last = result["scales"]
    assert first["fixed"] != first["redrawn"]
    assert last["fixed"] == last["redrawn"]  # no scale follows
