"""A benchmark's step is the run's own, its FLOPs are the plan's, and what it prints can be read."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
import torch
from program import exit_code

from launch import bench
from launch.benchmarks import infer, step
from launch.benchmarks.config import Effort, Infer, Step
from launch.benchmarks.infer import BatchResult, InferResult
from launch.benchmarks.model import build_model
from launch.benchmarks.result import PhaseResult
from launch.benchmarks.step import PHASES, TRANSFORMER, StepResult
from launch.configs.shape import ModelShape
from launch.sizing.flops import count_flops
from launch.sizing.phases import Workload
from learner.grpo.config import LearnerConfig
from reward.config import RewardConfig
from rollout.config import RolloutConfig
from stylevar.contracts import References
from stylevar.errors import UserError

TINY = ModelShape(depth=1, patch_nums=(1, 2, 3), ch=32, V=32, Cvae=8, ch_mult=(1, 1, 1), style_enc_dim=32)
ONCE = Effort(repeat=1, warmup=0)
LEARNER = LearnerConfig(lora_rank=4, micro_batch=1)
ROLLOUT = RolloutConfig(group=2)


@pytest.fixture(autouse=True)
def no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak is not measured: nothing here depends on it."""
    for name in ("step", "infer"):
        monkeypatch.setattr(f"launch.benchmarks.{name}.product_peak", lambda *_: 1e11)


def tiny(**changes: Any) -> Step:
    usual: dict[str, Any] = {"model": TINY, "rollout": ROLLOUT, "learner": LEARNER, "effort": ONCE, "device": "cpu"}
    return Step(**(usual | changes))


def test_the_plot_has_a_bar_for_each_phase(tmp_path, capsys):
    step.run(tiny(plot=tmp_path / "step.svg"))
    drawn = (tmp_path / "step.svg").read_text()
    assert all(f"<!-- {phase} -->" in drawn for phase in ("rollout", "update backward"))
    assert "rollout" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--plot .*step\.jpg: give a \.png or \.svg file"):
        tiny(plot=tmp_path / "step.jpg")


def test_naive_inference_is_compared_in_fp32_only():
    with pytest.raises(UserError, match="leave out --precision bf16 and --tf32"):
        Infer(compare_naive=True, precision="bf16")


def test_a_step_is_measured_phase_by_phase_with_the_flops_of_the_plan():
    result = step.measure(tiny(conditions=2, reward="lite"))
    assert list(result.phases) == [*PHASES, "other"]
    work = Workload(build_model(TINY, torch.device("cpu")).arch, LEARNER, ROLLOUT, RewardConfig())
    planned = count_flops(work).per_step(2, 2, passes=1, optimizer_steps=1)
    counted = {name: phase.flops for name, phase in result.phases.items() if phase.flops}
    assert counted == planned
    assert result.step.flops == sum(planned.values())
    assert result.transformer.flops == sum(planned[name] for name in TRANSFORMER)
    assert all(result.phases[name].seconds > 0 for name in PHASES)
    assert result.logprob_mismatch_max < 1e-4
    assert result.saved_activation_bytes > 0
    assert result.comparison is None


def test_the_naive_model_goes_through_the_same_step():
    result = step.measure(tiny(compare_naive=True))
    comparison = result.comparison
    assert comparison is not None
    assert comparison.tokens_equal == 1
    assert comparison.logprob_difference_max < 1e-4
    for side in (comparison.naive, comparison.ours):
        assert set(side.seconds) == set(side.flops) | {"effective weights"}
    assert comparison.ours.flops["rollout"] == result.phases["rollout"].flops < comparison.naive.flops["rollout"]
    assert "naive against ours" in result.text()


def test_json_has_the_documented_keys(capsys):
    step.run(tiny(json=True))
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {field.name for field in fields(StepResult)}
    assert set(printed["phases"]["rollout"]) == {field.name for field in fields(PhaseResult)}
    assert printed["phases"]["reward"]["flops"] == 0


def test_rewards_of_none_differ_within_a_group():
    images = torch.zeros(2, 3, 3, 4, 4, dtype=torch.uint8)
    rewards = step.RandomRewards().score(images, References(images[:, 0])).rewards
    assert rewards.shape == (2, 3)
    assert len(set(rewards.flatten().tolist())) == 6


def test_settings_that_cannot_be_are_refused(monkeypatch, capsys):
    with pytest.raises(UserError, match="--reward pretty: unknown; choose one of none, lite, dreamsim"):
        tiny(reward="pretty")
    with pytest.raises(UserError, match="--compare-naive: leave --kv-cache"):
        step.measure(tiny(rollout=RolloutConfig(group=2, kv_cache="paper"), compare_naive=True))
    with pytest.raises(UserError, match="--compare-naive: .* leave out --credit vmr"):
        step.measure(tiny(rollout=RolloutConfig(group=4), learner=LearnerConfig(credit="vmr"), compare_naive=True))
    assert exit_code(monkeypatch, bench.main, "step", "--reward", "pretty") == 2
    assert "pretty" in "".join(capsys.readouterr())
    assert exit_code(monkeypatch, bench.main, "step", "--reward", "dreamsim", "--depth", "1", "--ch", "32") == 2
    assert "dreamsim_cache" in capsys.readouterr().err


def test_inference_is_measured_for_every_batch_size(capsys):
    infer.run(Infer(TINY, ONCE, batch_sizes=(2, 1), device="cpu", json=True, compare_naive=True))
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {field.name for field in fields(InferResult)}
    one, two = printed["batches"]
    assert set(one) == {field.name for field in fields(BatchResult)}
    assert (one["batch_size"], two["batch_size"], two["flops"] / one["flops"]) == (1, 2, 2)
    assert one["naive"]["tokens_equal"] == 1
    assert one["naive"]["flops"] > one["flops"]


def test_a_result_reads_as_tables():
    text = step.measure(tiny(effort=Effort(repeat=2, warmup=0))).text()
    assert all(phase in text for phase in PHASES)
    assert "of peak" in text
