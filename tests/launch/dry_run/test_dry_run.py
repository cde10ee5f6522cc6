"""A dry run as a user meets it, and where its numbers come from."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import tiny
import torch
import yaml

from data.conditions import ConditionSets
from launch import grpo
from launch.common.text import duration, operations, size, table
from launch.configs.cluster import ClusterConfig
from launch.configs.dry_run import PlanConfig
from launch.configs.grpo import GrpoConfig, load_config
from launch.configs.io import to_plain
from launch.dry_run import inputs, plan
from launch.dry_run.costs import NETWORK_BYTES_PER_S, PASS_SECONDS, Measurement, costs_from_flops
from launch.dry_run.plan import _verdict, _WhatIf
from launch.dry_run.roles import Hardware, place, schedule_of, with_rollout_workers
from launch.dry_run.simulate import Prediction, Schedule
from launch.sizing.flops import Flops
from learner.grpo.config import LearnerConfig
from reward.config import RewardConfig
from rollout.config import RolloutConfig
from stylevar.checkpoint import load_pair
from stylevar.errors import UserError

MACHINE = Hardware(cpus=8, gpus=0, own_devices=False)


def config(**changes) -> GrpoConfig:
    settings = {
        "conditions": 4,
        "device": "cpu",
        "rollout": RolloutConfig(group=2),
        "learner": LearnerConfig(lora_rank=2),
        "reward": RewardConfig(reward="lite"),
    }
    return GrpoConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def argv(tmp_path_factory) -> list[str]:
    """A command line that plans a tiny run, from the folder where it would be written."""
    folder = tmp_path_factory.mktemp("inputs")
    model, vae = tiny.save(folder / "sft")
    train, heldout = tiny.shard(folder / "train-0.tar", 10), tiny.shard(folder / "heldout-0.tar", 3, first=50)
    plain = to_plain(config(init=str(model), vae=str(vae), shards=(str(train),), heldout=(str(heldout),), threads=1))
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    schedule = ["--lr-schedule", "cosine"]  # a rate that depends on the length of the run, as in the demo
    return ["--config", str(folder / "config.yaml"), "--runs", str(folder / "runs"), *schedule]


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch):
    def started(*args: object) -> None:
        raise AssertionError("a dry run has reached for Ray")

    monkeypatch.setattr("launch.cluster.start.start_worker", started)


def number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    assert match is not None, (pattern, text)
    return float(match[1])


def test_a_distributed_plan_says_it_all_and_leaves_nothing(argv, capsys, tmp_path):
    flags = ["--placement", "distributed", "--rollout-workers", "2", "--what-if", "1", "2", "4"]
    grpo.cli([*argv, *flags])
    text = capsys.readouterr().out
    written = tmp_path / "config.yaml"
    written.write_text(text.partition("config\n")[2].partition("\n\n")[0])
    run = load_config(written)
    assert (run.cluster.rollout_workers, run.conditions) == (2, 4)
    assert run.plan == PlanConfig()
    for words in ("rollout      2", "KV cache", "saved activations", "optimizer moments", "update backward", "all actors"):
        assert words in text
    assert "2.5 (10 conditions)" in text
    step = re.search(r"step +([\d.e-]+) (ms|s|min)\n", text)
    assert step is not None
    seconds = float(step[1]) * {"ms": 0.001, "s": 1, "min": 60}[step[2]]
    assert number(r"trajectories/s +([\d.]+)", text) == pytest.approx(8 / seconds, rel=0.02)
    rows = re.findall(r"^ +([124]) +(\d) .*%.* ([\d.]+)$", text, re.MULTILINE)
    assert [(int(workers), int(units)) for workers, units, _ in rows] == [(1, 2), (2, 4), (4, 4)]
    assert rows[0][2] == "1.00"
    assert re.search(r"(With more than|Up to) \d rollout worker", text)
    assert not Path(argv[-1]).exists()


@pytest.mark.slow
def test_a_plan_measures_what_the_credit_needs_of_the_rewards(argv, capsys):
    grpo.cli([*argv, "--dry-run", "--credit", "prefix"])
    assert "trajectories/s" in capsys.readouterr().out


@pytest.mark.slow
def test_a_colocated_plan_from_flops_measures_nothing(argv, capsys, monkeypatch):
    monkeypatch.setattr(plan, "Measurement", None)
    grpo.cli([*argv, "--dry-run", "--device-tflops", "1", "--device-memory-gb", "0.001"])
    text = capsys.readouterr().out
    assert "colocated      1" in text
    assert "costs from FLOPs at 1 TFLOP/s" in text
    assert "too much. Give --memory-budget" in text
    assert "computed at once: micro-batch 1, rollout batch 1, decode batch 1" in text
    assert re.search(r"a memory budget of 1 MB.* cannot hold the run.* with --recompute", text)
    assert "load adapters" not in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dry-run", "--init", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--what-if", "0"], "--what-if 0"),
        (["--dry-run", "--device-tflops", "-1"], "--device-tflops -1"),
        (["--dry-run", "--conditions", "64"], "--conditions 64"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(argv, capsys, flags, words):
    with pytest.raises(SystemExit) as ended:
        grpo.cli([*argv, *flags])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_actors_share_the_cpus_unless_told_otherwise():
    cluster = ClusterConfig(placement="distributed", rollout_workers=2, learner_cpus=3.5)
    actors = {actor.name: actor for actor in place(config(cluster=cluster), MACHINE)}
    assert (actors["rollout"].count, actors["rollout"].cpus, actors["rollout"].threads) == (2, 2.0, 2)
    assert (actors["learner"].cpus, actors["learner"].threads) == (3.5, 3)
    assert actors["reward"].gpus == 0
    (one,) = place(config(threads=3), MACHINE)
    assert (one.name, one.cpus, one.threads) == ("colocated", 3.0, 3)
    on_gpus = place(config(cluster=dataclasses.replace(cluster, rollout_gpus=0.5)), Hardware(8, 4, True))
    assert [actor.gpus for actor in on_gpus] == [0.5, 1.0, 1.0]


def test_the_schedule_is_that_of_the_run():
    cluster = ClusterConfig(placement="distributed", reward_workers=3, learners=2, max_staleness=1)
    settings = config(conditions=12, cluster=cluster, learner=LearnerConfig(minibatches=2, updates_per_rollout=3))
    schedule = schedule_of(with_rollout_workers(settings, 2), MACHINE)
    assert schedule.units == ((1,) * 6,) * 2
    assert (schedule.rollout_workers, schedule.reward_workers, schedule.learners) == (2, 3, 2)
    assert (schedule.max_staleness, schedule.updates_per_rollout, schedule.cores) == (1, 3, 8)
    small = dataclasses.replace(settings, rollout=RolloutConfig(group=8, rollout_batch=16))
    assert schedule_of(with_rollout_workers(small, 1), MACHINE).units == ((2, 2, 2),) * 2
    assert schedule_of(settings, Hardware(8, 0, True)).cores is None


def test_costs_follow_from_flops_and_bytes():
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
        credit=5,
        forward=6,
        head_backward=1,
        backward=9,
    )
    cluster = ClusterConfig(placement="distributed", learners=4, wire="bf16")
    costs = costs_from_flops(flops, config(rollout=RolloutConfig(group=8), cluster=cluster), adapters=10**9, tflops=1e-12)
    assert (costs.encode, costs.sample, costs.score, costs.reference, costs.update) == (80, 96, 40, 64, 192)
    assert costs.sync == 5 + 2e9 / NETWORK_BYTES_PER_S
    assert costs.reduce == 2 * 0.75 * 4e9 / NETWORK_BYTES_PER_S


def test_a_slow_machine_measures_a_part_and_scales_it(argv, monkeypatch):
    settings = load_config(Path(argv[1]))
    _, model = load_pair(settings.init, settings.vae)
    flops = Flops(
        encode=0,
        encode_again=0,
        queries=0,
        queries_backward=0,
        target=0,
        effective_weights=0,
        rollout=1,
        decode=0,
        reward=0,
        credit=0,
        forward=0,
        head_backward=0,
        backward=0,
    )
    settings = dataclasses.replace(settings, rollout=RolloutConfig(group=4))
    sets = ConditionSets({"train": settings.shards}, model.arch.image_size, model.vae.fingerprint(), 2, seed=0)
    measurement = Measurement(settings, model, sets, flops, torch.device("cpu"))

    def one_second(work, after=lambda: None):
        work()
        after()
        return 1.0

    monkeypatch.setattr(measurement, "_seconds", one_second)
    monkeypatch.setattr("launch.dry_run.costs.product_peak", lambda device, sides: 8 / PASS_SECONDS)
    assert measurement.amount(4) == (2, 4)
    assert measurement.amount(1) == (1, 4)
    whole = measurement.costs(2, {"rollout": 1, "reward": 1, "learner": 1})
    measurement._rate = 2 / PASS_SECONDS
    assert measurement.amount(4) == (1, 2)
    branching = dataclasses.replace(settings, learner=dataclasses.replace(settings.learner, credit="vmr"))
    monkeypatch.setattr(measurement, "config", branching)
    assert measurement.amount(4) == (1, 4)
    monkeypatch.setattr(measurement, "config", settings)
    part = measurement.costs(2, {"rollout": 1, "reward": 1, "learner": 1})
    # A second for two whole groups, and for half a group.
    assert (whole.sample, whole.score, whole.reference) == (0.5, 0.5, 0.5)
    assert (part.sample, part.score, part.reference) == (2.0, 2.0, 2.0)
    assert (whole.encode, part.encode, whole.sync) == (0.5, 1.0, pytest.approx(1.0, abs=1e-3))


def case(workers: int, seconds: float, cores: float | None = None) -> _WhatIf:
    prediction = Prediction(seconds, {"rollout": 0.4, "reward": 0.1, "learner": 0.9}, cores)
    return _WhatIf(workers, Schedule(((1, 1, 1, 1),), cores=None if cores is None else 2.0), prediction)


def test_the_verdict_names_where_workers_stop_helping_and_why():
    assert (
        _verdict([case(1, 10.0), case(2, 6.0), case(4, 5.9), case(8, 5.9)])
        == "With more than 2 rollout workers a step gains less than 5%: the learner role is the bottleneck, 90% busy."
    )
    assert _verdict([case(1, 10.0), case(2, 10.0), case(4, 5.0)]).startswith("Up to 4")
    assert "only 4 units" in _verdict([case(2, 10.0), case(4, 5.0), case(8, 5.0)])
    assert "the machine's 2 cores are the bottleneck" in _verdict([case(1, 10.0, 0.97), case(2, 9.9, 1.0)])


def test_what_if_implies_a_dry_run():
    assert PlanConfig(what_if=(1,)).wanted
    assert not PlanConfig(device_tflops=3.0).wanted
    with pytest.raises(UserError, match="--device-memory-gb 0"):
        PlanConfig(device_memory_gb=0)


def test_numbers_are_for_reading():
    assert [size(n) for n in (0, 999, 1000, 999_600, 24_330_000_000)] == ["0 B", "999 B", "1 kB", "1 MB", "24.3 GB"]
    assert [operations(n) for n in (7, 561.7e9, 3.1337e12)] == ["7", "562 G", "3.13 T"]
    assert [duration(s) for s in (0.00152, 4.86, 150, 9000)] == ["1.52 ms", "4.86 s", "2.5 min", "2.5 h"]
    assert table(("a", "bb"), [("ccc", "1")]) == "  a    bb\n  ccc   1"


@pytest.mark.parametrize("words", [["1", "2", "4"], ["1,2,4"], ["1,", "2,4"]])
def test_what_if_takes_spaces_and_commas(words):
    parsed, _ = grpo.parse(["--what-if", *words, "--group", "2"])
    assert parsed.plan.what_if == (1, 2, 4)


def test_what_if_takes_nothing_but_numbers(capsys):
    with pytest.raises(SystemExit) as ended:
        grpo.parse(["--what-if", "1;2"])
    assert ended.value.code == 2
    assert "1;2" in capsys.readouterr().err


PAPER = ["--preset", "paper", "--dry-run"]
GIVEN = ["--device-tflops", "80", "--device-memory-gb", "48"]


@pytest.fixture
def _nothing_there(tmp_path, monkeypatch):
    """A folder without shards or weights; the architecture that is assumed is a tiny one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inputs, "ModelConfig", lambda: tiny.build().arch)


@pytest.mark.slow
def test_the_paper_is_planned_without_any_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    grpo.cli([*PAPER, *GIVEN])
    text = capsys.readouterr().out
    assert "the architecture is the paper's, depth 20 at 256 px" in text
    assert "transformer 721,000,720, VQ-VAE 108,948,355, adapters 131,072,000" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_nothing_there")
def test_a_plan_says_what_it_assumes(capsys):
    grpo.cli([*PAPER, *GIVEN, "--what-if", "1,2"])
    text = capsys.readouterr().out
    for words in ("no model (--init) and no VQ-VAE (--vae)", "no shards (--shards)", "no weights of the reward dreamsim"):
        assert words in text
    assert re.search(r"steps per epoch +unknown without shards", text)
    assert "costs from FLOPs at 80 TFLOP/s" in text
    assert "of 48 GB of its device" in text
    assert number(r"step +([\d.e-]+) ms", text) > 0
    assert re.search(r"(With more than|Up to) \d rollout worker", text)
    assert not list(Path().iterdir())


@pytest.mark.usefixtures("_nothing_there")
def test_without_files_the_speed_of_products_is_measured(capsys, monkeypatch):
    threads = []

    def rate(device, precision, count):
        threads.append(count)
        return 5e10

    monkeypatch.setattr(plan, "product_rate", rate)
    monkeypatch.setattr(plan, "Measurement", None)
    grpo.cli([*PAPER, "--threads", "3", "--device", "cpu"])
    text = capsys.readouterr().out
    assert "costs from FLOPs at 0.05 TFLOP/s, which matrix products reach here" in text
    assert "of memory" in text
    assert threads == [3]


@pytest.mark.usefixtures("_nothing_there")
def test_what_is_there_is_used_and_the_rest_assumed(argv):
    run = load_config(Path(argv[1]))

    def found(*flags: str) -> inputs.Inputs:
        return inputs.find_inputs(grpo.parse([*PAPER, "--reward", "lite", "--conditions", "4", *flags])[0])

    with_shards = found("--shards", *run.shards)
    assert with_shards.model is None
    assert with_shards.sets is not None
    assert with_shards.sets.sizes() == {"train": 10}
    assert not any("no shards" in line for line in with_shards.assumed)
    with_model = found("--init", run.init, "--alphas", "0.1", "0.2", "0.3")
    assert f"no VQ-VAE (--vae): the architecture is that of {run.init}, depth 1 at 12 px" in with_model.assumed
    assert with_model.arch.alphas == (0.1, 0.2, 0.3)
    assert not found("--init", run.init, "--vae", run.vae, "--shards", *run.shards).assumed


@pytest.mark.usefixtures("_nothing_there")
@pytest.mark.parametrize("flag", ["--init", "--vae", "--shards", "--heldout", "--novel"])
def test_what_a_command_line_names_has_to_be_there(capsys, flag):
    with pytest.raises(SystemExit) as ended:
        grpo.cli([*PAPER, *GIVEN, flag, "nowhere.safetensors"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "nowhere.safetensors" in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("_nothing_there")
def test_a_run_needs_what_its_plan_does_not(capsys):
    with pytest.raises(SystemExit) as ended:
        grpo.cli(["--preset", "paper"])
    assert ended.value.code == 2
    assert "data/train-*.tar" in capsys.readouterr().err
