"""The GRPO run as a user meets it: the loop over a plain worker, resume, merges, bad input, and the program through Ray."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from grpo_files import config, rows, write_inputs
from patience import HANG
from safetensors.torch import load_file

from launch import grpo
from launch.configs.grpo import GrpoConfig, default_for, demo, load_config
from launch.configs.io import to_plain
from launch.rl.colocated import ColocatedWorker
from launch.rl.run import execute
from launch.run.run_folder import RunFolder, find_resume
from learner.grpo.config import LearnerConfig
from learner.grpo.merging import MergeAction, MergeConfig
from rollout.config import RolloutConfig
from stylevar.errors import UserError

ROOT = Path(grpo.__file__).parents[1]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


class InterruptedWorker(ColocatedWorker):
    """Receives Ctrl-C in the middle of a step."""

    at = -1

    def step(self, step: int):
        if step == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().step(step)


def stop_and_resume(settings: GrpoConfig, at: int) -> None:
    worker = InterruptedWorker()
    worker.at = at
    with pytest.raises(SystemExit) as stopped:
        execute(settings, None, worker)
    assert stopped.value.code == 130
    assert not (settings.runs / settings.name / "model").exists()
    point = find_resume("auto", settings.runs, settings.name)
    assert point is not None
    assert point.step == at + 1
    execute(settings, point, ColocatedWorker())


@pytest.mark.parametrize("trained", [0, 1])
def test_ctrl_c_outside_the_steps_says_how_to_go_on(inputs, tmp_path, capsys, trained):
    """While the held-out conditions are scored, before the first checkpoint or after the last one."""

    class Pressed(ColocatedWorker):
        steps = 0

        def step(self, step: int):
            self.steps += 1
            return super().step(step)

        def evaluate(self, name: str, conditions: int | None = None):
            if self.steps == trained:
                raise KeyboardInterrupt
            return super().evaluate(name, conditions)

    runs = tmp_path / "my runs"
    with pytest.raises(SystemExit) as stopped:
        execute(config(inputs, runs, steps=1), None, Pressed())
    assert stopped.value.code == 130
    again = ["--resume", str(runs / "run")]
    command = capsys.readouterr().out.rpartition("continue with: ")[2]
    assert shlex.split(command) == ["python", "launch/grpo.py", *again]
    settings, point = grpo.parse(again)
    assert (settings.name, settings.runs, settings.steps) == ("run", runs, 1)
    assert point is not None
    assert point.step == trained


def test_rewards_that_are_not_finite_are_warned_of(inputs, tmp_path, capsys):
    class Broken(ColocatedWorker):
        def step(self, step: int):
            report = super().step(step)
            rewards = torch.full_like(report.rows.rewards, float("nan"))
            return dataclasses.replace(report, rows=dataclasses.replace(report.rows, rewards=rewards))

        def evaluate(self, name: str, conditions: int | None = None):
            report = super().evaluate(name, conditions)
            return dataclasses.replace(report, rewards=torch.full_like(report.rewards, float("nan")))

    execute(config(inputs, tmp_path, steps=1), None, Broken())
    captured = capsys.readouterr()
    assert "warning: step 1: 4 of 4 rewards are not finite" in captured.out
    assert "warning: heldout: 6 of 6 rewards are not finite" in captured.err


def last_checkpoint(run: Path) -> Path:
    return (run / "checkpoints" / "latest").resolve()


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    settings = config(inputs, tmp_path_factory.mktemp("runs"), "whole")
    execute(settings, None, ColocatedWorker())
    return settings.runs / "whole"


def test_a_run_leaves_what_it_promises(whole):
    assert load_config(whole / "config.yaml").steps == 8
    assert len(rows(whole)) == 8 * 2 * 2
    assert {"step", "key", "g", "reward", "component_total", "advantage", "logp", "kl", "seed"} <= set(rows(whole)[0])
    assert json.loads((last_checkpoint(whole) / "progress.json").read_text())["merges"] >= 1
    assert (whole / "merges" / "merge_0001" / "model.safetensors").is_file()
    assert (whole / "checkpoints" / "best").resolve().is_dir()
    assert (last_checkpoint(whole) / "adapter" / "adapter_config.json").is_file()
    assert set(load_file(whole / "model" / "model.safetensors")) == set(tiny.build().state_dict())
    assert any((whole / "tensorboard").iterdir())
    scored = {file.stem: json.loads(file.read_text()) for file in (whole / "heldout").glob("*.json")}
    conditions = {name: len(scores["rewards"]) for name, scores in scored.items()}
    assert conditions == {"heldout_00000000": 3, "heldout_00000003": 2, "heldout_00000006": 2, "heldout_00000008": 3}


OTHER_CREDITS = [pytest.param(*row, marks=pytest.mark.slow) for row in (("prefix", ["sums"]), ("vmr", []))]


@pytest.mark.parametrize(("credit", "remembered"), [("gradient", ["sums"]), *OTHER_CREDITS])
def test_what_the_credit_remembers_is_resumed(inputs, tmp_path, credit, remembered):
    """Bit for bit: what it has measured so far belongs to the checkpoint. The turns of vmr follow from the step's number."""
    learner = LearnerConfig(lora_rank=2, lr=1e-2, credit=credit)
    fields = {"steps": 4, "learner": learner, "rollout": RolloutConfig(group=4, top_k=20)}
    execute(config(inputs, tmp_path, "whole", **fields), None, ColocatedWorker())
    stop_and_resume(config(inputs, tmp_path, **fields), at=1)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert rows(run) == rows(whole)
    ours, theirs = (torch.load(last_checkpoint(path) / "optimizer.pt", weights_only=True) for path in (run, whole))
    assert [name for name in theirs if name.startswith("credit.")] == [f"credit.{name}" for name in remembered]
    for name in remembered:
        assert theirs[f"credit.{name}"].any()
        assert torch.equal(ours[f"credit.{name}"], theirs[f"credit.{name}"])
    adapters = [load_file(last_checkpoint(path) / "adapter" / "adapter_model.safetensors") for path in (run, whole)]
    assert all(torch.equal(adapters[0][name], value) for name, value in adapters[1].items())


@pytest.mark.parametrize("at", [1, 4, 6])
def test_resume_equals_the_uninterrupted_run(inputs, whole, tmp_path, at):
    """Bit for bit, across merges and the end of an epoch: weights, optimizer, controller, snapshots, every trajectory."""
    settings = config(inputs, tmp_path)
    stop_and_resume(settings, at)
    run = tmp_path / "run"
    assert rows(run) == rows(whole)
    ours, theirs = last_checkpoint(run), last_checkpoint(whole)
    assert (ours / "progress.json").read_text() == (theirs / "progress.json").read_text()
    assert (ours / "worker.json").read_text() == (theirs / "worker.json").read_text()
    for file in sorted(theirs.rglob("*.safetensors")):
        expected = load_file(file)
        actual = load_file(ours / file.relative_to(theirs))
        assert all(torch.equal(actual[k], v) for k, v in expected.items()), file
    optimizers = [torch.load(path / "optimizer.pt", weights_only=True) for path in (ours, theirs)]
    for index, state in optimizers[1]["state"].items():
        assert all(torch.equal(optimizers[0]["state"][index][k], v) for k, v in state.items())
    models = [load_file(path / "model" / "model.safetensors") for path in (run, whole)]
    assert all(torch.equal(models[0][k], v) for k, v in models[1].items())


def test_kl_is_zero_and_outputs_unchanged_right_after_a_merge(inputs, tmp_path):
    worker = ColocatedWorker()
    worker.setup(config(inputs, tmp_path), None)
    for step in range(2):
        worker.step(step)
    assert worker.step(2).metrics["kl/raw"] > 0
    before = worker.evaluate("heldout")
    worker.apply(MergeAction.SNAPSHOT)
    fingerprint = worker.fingerprint()
    worker.apply(MergeAction.PEAK_MERGE)
    assert worker.fingerprint() == fingerprint
    assert worker.policy.version.merges == 1
    torch.testing.assert_close(worker.evaluate("heldout").rewards, before.rewards, atol=1e-5, rtol=0)
    after = worker.step(3).metrics
    assert after["kl/raw"] == 0.0
    assert after["policy/ratio_mean"] == 1.0


def test_rollbacks_restore_what_they_name(inputs, tmp_path):
    worker = ColocatedWorker()
    worker.setup(config(inputs, tmp_path), None)
    start = worker.fingerprint()
    worker.step(0)
    best = worker.fingerprint()
    assert best != start
    worker.apply(MergeAction.SNAPSHOT_BEST_HELDOUT)
    worker.step(1)
    assert worker.fingerprint() != best
    worker.apply(MergeAction.REWARD_ROLLBACK)
    assert worker.fingerprint() == best
    worker.apply(MergeAction.ROLLBACK)
    assert worker.fingerprint() == start
    assert worker.step(2).metrics["lr"] == worker.config.learner.lr / 16  # a quarter after each rollback
    worker.apply(MergeAction.ROLLBACK)
    moments = worker.trainer.learner.optimizer.state.values()
    assert moments
    assert all(value.count_nonzero() == 0 for one in moments for value in one.values())


def test_a_policy_that_can_no_longer_learn_is_rolled_back_at_once(inputs, tmp_path):
    learner = dataclasses.replace(config(inputs, tmp_path).learner, lr=1.0, kl_limit=1e-9)
    settings = config(inputs, tmp_path, steps=2, learner=learner, merge=MergeConfig(emergency_kl=0.0))
    worker, start = ColocatedWorker(), ColocatedWorker()
    applied = []
    apply = worker.apply
    worker.apply = lambda action: applied.append(action) or apply(action)
    execute(settings, None, worker)
    # after the second step, the first that was skipped; the start is the best there is
    best = MergeAction.SNAPSHOT_BEST_HELDOUT
    assert applied == [best, MergeAction.ROLLBACK, best]
    start.setup(settings, None)
    assert worker.fingerprint() == start.fingerprint()


def test_a_restarted_worker_goes_on_from_the_checkpoint(inputs, tmp_path):
    """As the run's driver may ask of any worker: what came after the checkpoint is forgotten, and done again."""
    worker = ColocatedWorker()
    worker.setup(config(inputs, tmp_path), None)
    worker.step(0)
    (tmp_path / "checkpoint").mkdir()
    worker.save(tmp_path / "checkpoint", "init")
    expected = worker.step(1).rows.rewards
    after = worker.fingerprint()
    worker.restart(tmp_path / "checkpoint")
    assert torch.equal(worker.step(1).rows.rewards, expected)
    assert worker.fingerprint() == after


def test_the_reward_rises_on_one_condition(inputs, tmp_path):
    """The whole point: sampled rewards go up on what is trained on."""
    tiny.shard(tmp_path / "one.tar", 1)
    settings = config(
        inputs,
        tmp_path,
        shards=(str(tmp_path / "one.tar"),),
        conditions=1,
        rollout=RolloutConfig(group=32, top_k=0, top_p=0.0),
        learner=LearnerConfig(lora_rank=8, lr=1e-2, kl_beta=0.0),
    )
    worker = ColocatedWorker()
    worker.setup(settings, None)
    rewards = [worker.step(step).metrics["reward/mean"] for step in range(25)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15


def test_config_round_trip_and_presets(inputs, tmp_path):
    import yaml

    path = tmp_path / "config.yaml"
    settings = config(inputs, tmp_path, alphas=(0.1, 0.2, 0.3))
    path.write_text(yaml.safe_dump(to_plain(settings)))
    assert load_config(path) == settings
    paper = default_for(["--preset", "paper"])
    assert (paper.conditions, paper.rollout.group, paper.reward.reward, paper.reward.reward_scale) == (16, 16, "dreamsim", 5)
    assert (paper.learner.lora_rank, paper.learner.lr, paper.learner.kl_beta) == (256, 1e-5, 0.1)
    assert (paper.rollout.top_k, paper.rollout.top_p) == (900, 0.96)
    assert default_for([]) == default_for(["--preset", "demo"]) == demo()
    path.write_text(yaml.safe_dump({**to_plain(settings), "stepz": 3}))
    with pytest.raises(UserError, match="stepz"):
        load_config(path)


def test_every_field_is_a_flag(inputs, tmp_path):
    argv = ["--preset", "demo", "--group", "3", "--lr", "0.5", "--reward", "dreamsim", "--dreamsim-type", "clip_vitb32"]
    parsed, _ = grpo.parse([*argv, "--merge-policy", "paper", "--kl-estimator", "k1", "--eval-every", "7"])
    assert (parsed.rollout.group, parsed.learner.lr, parsed.reward.dreamsim_type) == (3, 0.5, "clip_vitb32")
    assert (parsed.merge.merge_policy, parsed.learner.kl_estimator, parsed.monitor.eval_every) == ("paper", "k1", 7)


def test_bare_commands_run_the_demo_each_in_a_folder_of_its_own(inputs, tmp_path, monkeypatch, capsys):
    """No --preset and no --name; the rest makes the run one of milliseconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.cluster.start.start_worker", lambda config, stop: ColocatedWorker())
    small = ["--init", f"{inputs}/sft", "--vae", f"{inputs}/sft", "--shards", f"{inputs}/train-*.tar", "--novel"]
    small += ["--heldout", f"{inputs}/heldout-*.tar", "--steps", "1", "--conditions", "1", "--group", "2"]
    small += ["--lora-rank", "2", "--threads", "1", "--device", "cpu"]
    grpo.cli(small)
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if "--preset paper is for real data" in line] == said.splitlines()[:1]
    assert load_config(tmp_path / "runs" / "demo" / "config.yaml").preset == "demo"
    grpo.cli(small)
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert runs == ["demo", "demo-2"]
    assert f"runs/{runs[1]}/model" in capsys.readouterr().out
    assert load_config(tmp_path / "runs" / runs[1] / "config.yaml").name == runs[1]
    assert all((tmp_path / "runs" / name / "model").is_dir() for name in runs)


@pytest.mark.parametrize(
    ("argv", "named", "noted"),
    [
        ([], False, True),
        (["--name", "mine"], True, True),
        (["--resume", "auto"], True, True),  # a scheduler starts the same command line again and again
        (["--preset", "demo"], False, False),
        (["--preset=paper"], False, False),
    ],
)
def test_which_runs_keep_their_name_and_hear_of_the_presets(tmp_path, monkeypatch, capsys, argv, named, noted):
    seen = {}
    monkeypatch.setattr(grpo, "main", lambda config, point, named: seen.update(named=named))
    grpo.cli([*argv, "--runs", str(tmp_path)])
    assert seen == {"named": named}
    assert ("--preset paper" in capsys.readouterr().out) == noted


def test_sets_of_shards_take_many_words(tmp_path):
    parsed, _ = grpo.parse(["--shards", "a.tar", "b.tar", "--heldout", "c-*.tar", "--novel"])
    assert parsed.condition_patterns() == {"train": ("a.tar", "b.tar"), "heldout": ("c-*.tar",)}
    parsed, _ = grpo.parse(["--novel", "d", "e"])
    assert parsed.condition_patterns()["novel"] == ("d", "e")
    with pytest.raises(UserError, match="--heldout is empty"):
        grpo.parse(["--heldout"])


@pytest.mark.parametrize("novel", [None, "heldout"])
def test_a_config_of_an_older_version_is_resumed(inputs, tmp_path, novel):
    """One pattern, not a list of them, null for no second held-out set, and no word of the run's kind."""
    import yaml

    worker = InterruptedWorker()
    worker.at = 1
    with pytest.raises(SystemExit):
        execute(config(inputs, tmp_path, steps=3), None, worker)
    file = tmp_path / "run" / "config.yaml"
    values = yaml.safe_load(file.read_text())
    values |= {name: values[name][0] for name in ("shards", "heldout")} | {"novel": novel and values[novel][0]}
    assert values.pop("kind") == "grpo"
    file.write_text(yaml.safe_dump(values))
    settings, point = grpo.parse(["--resume", str(tmp_path / "run")])
    assert settings.shards == (values["shards"],)
    assert settings.novel == (() if novel is None else (values["novel"],))
    execute(settings, point, ColocatedWorker())
    assert (tmp_path / "run" / "model").is_dir()
    assert yaml.safe_load(file.read_text())["kind"] == "grpo"


def test_flags_of_a_resumed_run_need_not_fit_the_preset(inputs, tmp_path):
    run = RunFolder.create(tmp_path / "run", to_plain(config(inputs, tmp_path, conditions=3)))
    with run.checkpoint(1):
        pass
    resumed, _ = grpo.parse(["--resume", str(run.path), "--minibatches", "3"])
    assert (resumed.learner.minibatches, resumed.conditions) == (3, 3)


def program(*argv: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "launch" / "grpo.py"), *argv]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=HANG, check=False)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--group", "1"], "--group 1"),
        (["--shards", "nowhere-*.tar"], "nowhere-*.tar"),
        (["--init", "nowhere/model.safetensors"], "nowhere/model.safetensors"),
        (["--preset", "huge"], "huge"),
        (["--resume", "nowhere"], "--resume nowhere"),
        (["--no-such-flag", "3"], "no-such-flag"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(inputs, tmp_path, capsys, argv, message):
    defaults = config(inputs, tmp_path)
    files = ["--init", defaults.init, "--vae", defaults.vae, "--shards", *defaults.shards, "--heldout", *defaults.heldout]
    with pytest.raises(SystemExit) as ended:
        grpo.cli([*files, "--runs", str(tmp_path / "runs"), *argv])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_existing_run_is_not_overwritten(inputs, whole, capsys):
    defaults = config(inputs, whole.parent)
    files = ["--init", defaults.init, "--vae", defaults.vae, "--shards", *defaults.shards, "--heldout", *defaults.heldout]
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    with pytest.raises(SystemExit) as ended:
        grpo.cli([*files, "--runs", str(whole.parent), "--name", "whole"])
    assert ended.value.code == 2
    assert "--resume" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_the_program_runs_through_ray(inputs, whole, tmp_path):
    """The same command line as a user's; its trajectories equal those of the plain worker."""
    import yaml

    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(to_plain(config(inputs, tmp_path / "runs", steps=3))))
    result = program("--config", str(file), "--name", "ray")
    assert result.returncode == 0, result.stderr
    assert "tensorboard --logdir" in result.stdout
    run = tmp_path / "runs" / "ray"
    assert rows(run) == [row for row in rows(whole) if row["step"] < 3]
    assert (run / "before_after.png").is_file()


@pytest.mark.slow
def test_what_only_the_worker_can_see_is_one_line_too(inputs, tmp_path):
    import yaml

    file = tmp_path / "config.yaml"
    tiny.shard(tmp_path / "large.tar", 4, size=16)
    settings = config(inputs, tmp_path / "runs", shards=(str(tmp_path / "large.tar"),))
    file.write_text(yaml.safe_dump(to_plain(settings)))
    result = program("--config", str(file), "--name", "wrong")
    assert result.returncode == 2
    assert "16x16" in result.stderr or "wrong size" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs" / "wrong").exists()
