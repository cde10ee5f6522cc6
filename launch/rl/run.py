"""One GRPO run, from its set-up to the report."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from data.shards import TripletShards, expand_shards
from launch.common.commands import continuing, lasting, quoted
from launch.common.stop import STOPPED, StopRequest
from launch.configs.grpo import GrpoConfig
from launch.configs.io import to_plain
from launch.rl.heldout import before_after, compare
from launch.rl.loop import Progress, score_heldout, train
from launch.rl.worker import LearnerLost, WorkerLost
from launch.run.run_folder import ResumePoint, RunFolder, find_resume
from launch.run.saving import saving
from launch.run.telemetry import Telemetry
from learner.grpo.merging import MergeController
from stylevar.errors import UserError

PROGRAM = "grpo.py"


def execute(config: GrpoConfig, point: ResumePoint | None, worker: Any, stop: StopRequest | None = None) -> RunFolder:
    """Set up, score the held-out sets, train, score again, save the model. Exits with 130 if a signal ended it early.

    Lost learners take the run back to its last checkpoint, `--max-restarts` times at most.
    """
    stop = stop or StopRequest()
    try:
        try:
            facts = worker.setup(config, point.checkpoint if point else None)
        except LearnerLost as lost:
            raise UserError(f"{lost}: the learners could not start, perhaps for want of memory") from lost
        config = worker.settings()
        path = config.runs / config.name
        keep = config.monitor.keep_checkpoints
        settings = to_plain(config.absolute())
        # Only now: a run that cannot start leaves no folder behind.
        run = RunFolder.open(path, keep) if point else RunFolder.create(path, settings, keep)
        print(f"run {lasting(path)}: " + ", ".join(f"{name} {value}" for name, value in facts.items()))
        try:
            with saving(run, PROGRAM):
                if point is not None:
                    run.resume_with(settings, point.step)
                finished = advance_through_losses(config, run, worker, stop, point)
                print(worker.summary(), end="")
                if not finished:
                    stopped(run)
                with run.final_model(config.steps) as folder:
                    worker.save_policy(folder)
        except WorkerLost as lost:
            raise UserError(f"{lost}; continue with: {continuing(PROGRAM, run.path)}") from lost
        except KeyboardInterrupt:  # outside the training steps, or the second one
            stopped(run)
    except WorkerLost as lost:  # before there was anything of this run's own to save
        how = f"continue with: {continuing(PROGRAM, point.run)}" if point else "nothing was saved yet: start again"
        raise UserError(f"{lost}; {how}") from lost
    finally:
        worker.close()
    return run


def stopped(run: RunFolder) -> NoReturn:
    """Say how to go on from what is saved, and end."""
    print(f"stopped; continue with: {continuing(PROGRAM, run.path)}")
    sys.exit(STOPPED)


def advance_through_losses(
    config: GrpoConfig, run: RunFolder, worker: Any, stop: StopRequest, point: ResumePoint | None
) -> bool:
    """As `advance`; lost learners take the run back to its last checkpoint, `--max-restarts` times in all."""
    restarts = 0
    while True:
        try:
            return advance(config, run, worker, stop, point)
        except LearnerLost as lost:
            point, restarts = after_loss(config, worker, lost, restarts)


def advance(config: GrpoConfig, run: RunFolder, worker: Any, stop: StopRequest, point: ResumePoint | None) -> bool:
    """From a checkpoint, or the start, to the scores at the end; False if a signal ended it early."""
    progress = Progress(MergeController(config.merge))
    if point is not None:
        if point.checkpoint is not None:
            progress.load(point.checkpoint / "progress.json")
        run.rewind(progress.steps, progress.merges)
    telemetry = Telemetry(run, progress.steps)
    try:
        if progress.steps == 0:
            print("scoring the held-out conditions before training")
            score_heldout(config, worker, run, telemetry, 0)
        if not train(config, worker, run, telemetry, progress, stop):
            return False
        print("scoring the held-out conditions after training")
        score_heldout(config, worker, run, telemetry, config.steps)
    finally:
        telemetry.close()
    return True


def after_loss(config: GrpoConfig, worker: Any, lost: LearnerLost, restarts: int) -> tuple[ResumePoint, int]:
    """Bring the learners back to the last checkpoint; where that is, and how many restarts there were with this one.

    A restart that fails counts, too. UserError once there were `--max-restarts` of them.
    """
    while restarts < config.cluster.max_restarts:
        restarts += 1
        point = find_resume("auto", config.runs, config.name)
        assert point is not None
        print(f"{lost}: restarting the learners from step {point.step}", file=sys.stderr)
        try:
            worker.restart(point.checkpoint)
            return point, restarts
        except LearnerLost as again:
            lost = again
    path = config.runs / config.name
    raise UserError(
        f"{lost}, and the learners were restarted --max-restarts {config.cluster.max_restarts} times already: mend the "
        f"cause, then continue with {quoted('--resume', lasting(path))}"
    )


def report(config: GrpoConfig, run: RunFolder) -> None:
    """Print what the run gained, and draw it."""
    for name in config.heldout_sets:
        print("\n".join(compare(run.path, name, 0, config.steps).lines(name)))
    shards = TripletShards(expand_shards(config.heldout))
    rows = [shards.usable(i) for i in range(config.monitor.image_conditions)]
    picture = before_after(run.path, "heldout", 0, config.steps, [(r.content, r.style, r.target) for r in rows])
    print(f"picture      {lasting(picture)}")
    print(f"model        {lasting(run.path / 'model')}")
    print(f"run          {lasting(run.path)}")
    print(f"TensorBoard  {quoted('tensorboard', '--logdir', lasting(run.path.parent))}")
