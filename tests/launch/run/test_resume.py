"""Resuming a GRPO run: what is on disk is what is in force, what may change and what not, and disks that fail."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from campaign import tree
from full_disk import file_size_limit, limit_in
from grpo_files import config, rows, write_inputs
from safetensors.torch import load_file

from launch import grpo
from launch.common.stop import StopRequest
from launch.configs import sft as sft_config
from launch.configs.cluster import ClusterConfig
from launch.configs.grpo import MAY_CHANGE, GrpoConfig, load_config
from launch.configs.io import to_plain
from launch.configs.sft import SftConfig
from launch.rl.colocated import ColocatedWorker
from launch.rl.run import GrpoRun, execute
from launch.rl.worker import LearnerLost
from launch.run.resume import check_changes, check_steps
from launch.run.run_folder import ResumePoint, RunFolder, finished_at, flat
from launch.run.run_lock import only_writer
from stylevar.checkpoint import load_pair, read_model
from stylevar.errors import UserError
from stylevar.source import locate


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


class Worker(ColocatedWorker):
    """Receives Ctrl-C, or is killed, in the midst of a step."""

    stop_at = die_at = -1

    def step(self, step: int):
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        if step == self.die_at:
            raise KeyboardInterrupt
        return super().step(step)


@pytest.fixture
def program(monkeypatch):
    """The program with its worker in this process; its exit code."""

    def run(*argv: object, stop_at: int = -1, die_at: int = -1) -> int:
        worker = Worker()
        worker.stop_at, worker.die_at = stop_at, die_at
        monkeypatch.setattr("launch.cluster.start.start_worker", lambda *_: worker)
        try:
            grpo.cli([str(word) for word in argv])
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def new(settings: GrpoConfig) -> list[str]:
    """The command line of a new run."""
    file = settings.runs / f"{settings.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(to_plain(settings)))
    return ["--config", str(file)]


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory) -> Path:
    """An uninterrupted run of eight steps."""
    settings = config(inputs, tmp_path_factory.mktemp("runs"), "whole")
    execute(settings, None, ColocatedWorker())
    return settings.runs / "whole"


def contents(run: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in sorted(run.rglob("*")) if path.name != ".lock"}


def last_error(capsys) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


def test_an_extended_run_goes_on_as_the_flags_said(inputs, tmp_path, program, capsys):
    """The command that is printed when it is stopped needs no flags: the settings in force are those on disk."""
    run = tmp_path / "run"
    assert program(*new(config(inputs, tmp_path, steps=2))) == 0
    assert program("--resume", run, "--steps", 8, "--lr", "1e-3", "--weight-decay", "0.5", stop_at=3) == 130
    assert f"--resume {run}" in capsys.readouterr().out
    in_force = load_config(run / "config.yaml")
    assert (in_force.steps, in_force.learner.lr) == (8, 1e-3)
    assert yaml.safe_load((run / "changes.yaml").read_text()) == [
        {
            "step": 2,
            "changed": {
                "steps": {"from": 2, "to": 8},
                "learner.lr": {"from": 1e-2, "to": 1e-3},
                "learner.weight_decay": {"from": 0.01, "to": 0.5},
            },
        }
    ]
    assert finished_at(run) == 2
    assert not (run / "heldout" / "heldout_00000004.json").exists()
    assert program("--resume", run) == 0
    assert sorted({row["step"] for row in rows(run)}) == list(range(8))
    assert finished_at(run) == 8
    assert (run / "heldout" / "heldout_00000008.json").exists()
    (group,) = torch.load(run / "checkpoints" / "step_00000008" / "optimizer.pt")["param_groups"]
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0.5)
    shown = capsys.readouterr().out
    after = torch.tensor(json.loads((run / "heldout" / "heldout_00000008.json").read_text())["rewards"]).mean()
    assert f"{float(after):.4f} after" in shown


def test_a_finished_run_has_nothing_left_to_do(whole, program, capsys):
    before = contents(whole)
    assert program("--resume", whole) == 0
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith(f"run {whole} is finished at step 8, nothing is left to do: its model is {whole / 'model'}")
    assert contents(whole) == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--heldout", "{inputs}/train-*.tar"], "--heldout from {inputs}/heldout-*.tar to {inputs}/train-*.tar"),
        (["--shards", "{inputs}/heldout-*.tar"], "--shards from {inputs}/train-*.tar to {inputs}/heldout-*.tar"),
        (["--novel", "{inputs}/heldout-*.tar"], "--novel from none to {inputs}/heldout-*.tar"),
        (["--seed", "1"], "--seed from 0 to 1"),
        (["--lora-rank", "4"], "--lora-rank from 2 to 4"),
        (["--eval-group", "3", "--steps", "9"], "--eval-group from 2 to 3"),
        (["--alphas", "0.1", "0.2", "0.3"], "--alphas from none to 0.1 0.2 0.3"),
        (["--name", "other"], "--name from whole to other"),
    ],
)
def test_what_may_not_change_is_refused_at_the_start(inputs, whole, program, capsys, flags, said):
    before = contents(whole)
    assert program("--resume", whole, *(flag.format(inputs=inputs) for flag in flags)) == 2
    error = last_error(capsys)
    assert f"cannot change {said.format(inputs=inputs)}: start a new run" in error
    assert "what may change is --steps, --device" in error
    assert "all flags of cluster" in error
    assert contents(whole) == before


@pytest.mark.parametrize(("kind", "listed"), [(GrpoConfig, MAY_CHANGE), (SftConfig, sft_config.MAY_CHANGE)])
def test_all_that_may_change_exists(kind, listed):
    names = flat(asdict(kind()))
    groups = {name.partition(".")[0] for name in names if "." in name}
    assert [name for name in listed if name not in names and name not in groups] == []


def test_shards_are_the_same_by_whatever_name(inputs, whole):
    point = ResumePoint(whole, whole / "checkpoints" / "step_00000008", 8)
    one, other = (SftConfig(val_shards=(str(inputs / name),)) for name in ("heldout-*.tar", "heldout-0.tar"))
    check_changes(point, one, other, sft_config.MAY_CHANGE)
    with pytest.raises(UserError, match="cannot change --val-shards"):
        check_changes(point, one, SftConfig(val_shards=(str(inputs / "none-*.tar"),)), sft_config.MAY_CHANGE)


def test_a_long_list_of_shards_does_not_fill_the_screen(whole):
    point = ResumePoint(whole, whole / "checkpoints" / "step_00000008", 8)
    many = tuple(f"/data/{number}.tar" for number in range(500))
    with pytest.raises(UserError, match=r"from /data/0.tar /data/1.tar /data/2.tar and 497 more to /data/9.tar: start"):
        check_changes(point, SftConfig(shards=many), SftConfig(shards=("/data/9.tar",)), sft_config.MAY_CHANGE)


def test_steps_below_the_checkpoint_are_refused(whole, program, capsys):
    before = contents(whole)
    assert program("--resume", whole, "--steps", 5) == 2
    error = last_error(capsys)
    with pytest.raises(UserError) as refused:  # in the words that SFT uses, too
        check_steps(ResumePoint(whole, whole / "checkpoints" / "step_00000008", 8), 5)
    assert error == f"error: {refused.value}"
    assert "is at step 8, beyond --steps 5" in error
    assert contents(whole) == before


def test_a_run_is_resumed_from_another_folder(inputs, whole, tmp_path, program, monkeypatch):
    monkeypatch.chdir(inputs)
    relative = config(Path(), Path(os.path.relpath(tmp_path, inputs)))
    assert program(*new(relative), stop_at=3) == 130
    monkeypatch.chdir(tmp_path)
    assert program("--resume", "run") == 0
    assert rows(tmp_path / "run") == rows(whole)
    assert (tmp_path / "run" / "before_after.png").exists()


def test_a_run_that_was_cut_short_before_its_first_checkpoint_starts_again(inputs, whole, tmp_path, program):
    assert program(*new(config(inputs, tmp_path, steps=5)), die_at=1) == 130
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    # Nothing was learned with the old settings: all may change.
    assert program("--resume", tmp_path / "run", "--steps", 8, "--eval-conditions", 2) == 0
    assert rows(tmp_path / "run") == rows(whole)
    assert not (tmp_path / "run" / "changes.yaml").exists()


def test_a_second_driver_is_refused(inputs, whole, tmp_path, program, capsys):
    before = contents(whole)
    with only_writer(whole):
        assert program("--resume", whole, "--steps", 12) == 2
    assert f"is being written by process {os.getpid()}" in last_error(capsys)
    assert contents(whole) == before


def test_a_run_that_cannot_start_leaves_nothing(inputs, tmp_path, program, capsys):
    tiny.shard(tmp_path / "large.tar", 4, size=16)
    assert program(*new(config(inputs, tmp_path, shards=str(tmp_path / "large.tar")))) == 2
    assert "wrong size" in last_error(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["name", "runs"])
def test_a_place_that_cannot_hold_a_run_is_one_line(inputs, tmp_path, program, capsys, place):
    (tmp_path / "file").write_text("in the way")
    flags = {"name": ["--name", "x" * 260], "runs": ["--runs", tmp_path / "file"]}
    assert program(*new(config(inputs, tmp_path)), *flags[place]) == 2
    assert "is not writable" in last_error(capsys)


RARE = [pytest.param(at, marks=pytest.mark.slow) for at in ("event", "merge", "model")]


@pytest.mark.parametrize("at", ["checkpoint", "scores", *RARE])
def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_from_its_last_checkpoint(
    at, inputs, whole, tmp_path, program, monkeypatch, capsys
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch, file_size_limit() as limit:
        if at == "event":
            limit_in(patch, limit, Worker, "step", when=lambda worker: worker.policy.version.updates == 5)
        if at == "checkpoint":
            limit_in(patch, limit, Worker, "save", when=lambda worker: worker.policy.version.updates == 6)
        if at == "merge":
            limit_in(patch, limit, Worker, "save_base")
        if at == "model":
            limit_in(patch, limit, Worker, "save_policy")
        if at == "scores":
            limit_in(patch, limit, Worker, "evaluate", when=lambda worker: worker.policy.version.updates == 8)
        assert program(*new(config(inputs, tmp_path))) == 2
    error = last_error(capsys)
    last = RunFolder(run).steps()[-1]
    assert "cannot be written (File too large" in error
    assert f"all progress since the checkpoint of step {last} is lost" in error
    assert f"continue with: python launch/grpo.py --resume {run}" in error
    assert not list(tmp_path.rglob(".aside-*"))
    assert program("--resume", run) == 0
    assert rows(run) == rows(whole)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, whole))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("gone", [".", "trajectories"])
def test_a_folder_that_is_removed_meanwhile_is_one_line(inputs, tmp_path, program, monkeypatch, capsys, gone):
    step = Worker.step

    def removing(self: Worker, number: int):
        if number == 4:
            shutil.rmtree(tmp_path / "run" / gone)
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "step", removing)
        assert program(*new(config(inputs, tmp_path))) == 2
    error = last_error(capsys)
    if gone == ".":
        assert f"{tmp_path / 'run'} was removed or moved while the run was going: start the run again" in error
        assert not (tmp_path / "run").exists()
    else:
        assert "trajectories was removed): all progress since the checkpoint of step 4 is lost" in error


@pytest.mark.parametrize("taken", [False, True])
def test_a_folder_that_is_moved_meanwhile_is_one_line(inputs, whole, tmp_path, program, monkeypatch, capsys, taken):
    """Nothing is written where it was, even if another run has taken its place; where it is, it goes on."""
    run, moved, step = tmp_path / "run", tmp_path / "moved", Worker.step
    other: dict[Path, tuple[int, int, int]] = {}

    def moving(self: Worker, number: int):
        if number == 4:
            run.rename(moved)
            if taken:
                shutil.copytree(moved, run, symlinks=True)
                other.update(tree(run))
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "step", moving)
        assert program(*new(config(inputs, tmp_path))) == 2
    error = last_error(capsys)
    assert (
        f"{run} was moved to {moved} while the run was going: all progress since the checkpoint of step 4 is lost" in error
    )
    assert f"continue with: python launch/grpo.py --resume {moved}" in error
    assert tree(run) == other
    assert program("--resume", moved) == 0
    assert rows(moved) == rows(whole)
    assert tree(run) == other


def test_a_run_without_links_is_resumed_evaluated_and_released(inputs, whole, tmp_path, program, monkeypatch):
    def refused(self, target, target_is_directory=False):
        raise PermissionError(1, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "symlink_to", refused)
    run = tmp_path / "run"
    assert program(*new(config(inputs, tmp_path)), stop_at=5) == 130
    assert (run / "checkpoints" / "latest").is_file()
    assert program("--resume", run / "checkpoints" / "latest") == 0
    assert rows(run) == rows(whole)
    for name in ("latest", "best"):
        expected = load_pair(str(whole / "checkpoints" / name))[1].state_dict()
        exported = read_model(locate(str(run), take=name)).state
        for state in (load_pair(str(run / "checkpoints" / name))[1].state_dict(), exported):
            assert all(torch.equal(state[key], expected[key]) for key in state)


class RestartedWorker(ColocatedWorker):
    """Loses its learners at once, whose restarts fail in turn as `fails` says."""

    def __init__(self, fails: list[bool]) -> None:
        self.fails, self.restarts = itertools.cycle(fails), 0

    def setup(self, settings: GrpoConfig, checkpoint: Path | None):
        self.config = settings
        return {}

    def evaluate(self, name: str, conditions: int | None = None):
        raise LearnerLost("learner-0 was lost in an update")

    def restart(self, checkpoint: Path | None) -> None:
        self.restarts += 1
        if next(self.fails):
            raise LearnerLost("learner-0 was lost in setup")


@pytest.mark.parametrize("fails", [[False], [True], [True, False]])
def test_restarts_are_counted_once_whether_they_fail_or_not(inputs, tmp_path, monkeypatch, fails):
    settings = config(inputs, tmp_path, cluster=ClusterConfig(placement="distributed", max_restarts=5))
    worker = RestartedWorker(fails)
    run = GrpoRun(settings, None, worker)
    with pytest.raises(UserError, match="restarted --max-restarts 5 times already"):
        run.advance(StopRequest())
    run.close()
    assert worker.restarts == 5
