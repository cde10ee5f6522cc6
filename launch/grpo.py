"""Fine-tune a StyleVAR model with GRPO, through Ray.

python launch/grpo.py --preset demo
ray job submit --working-dir . -- python launch/grpo.py --preset demo
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ray
import tyro

from data.shards import TripletShards, expand_shards
from launch.cli import about, exit_code
from launch.cluster.distributed import DistributedRun
from launch.cluster.join import join_cluster
from launch.cluster.learner_group import LearnerLost
from launch.colocated_actor import ColocatedActor
from launch.commands import continuing, lasting, loss_warning, quoted
from launch.config import GrpoConfig, default_for, load_config, to_plain
from launch.heldout import before_after, compare
from launch.loop import Progress, score_heldout, train
from launch.plan.report import plan
from launch.run_folder import ResumePoint, RunFolder, find_resume
from launch.stop import STOPPED, StopRequest
from launch.telemetry import Telemetry
from learner.merge import MergeController
from stylevar.checkpoint import MODEL_FILE, VAE_FILE
from stylevar.errors import UserError
from stylevar.hub import fetch


def parse(argv: list[str]) -> tuple[GrpoConfig, ResumePoint | None]:
    """The configuration that a command line asks for, and where to resume. Flags win over a resumed run's config."""
    config = _flags(argv, default_for(argv))
    if config.resume is None:
        return config, None
    point = find_resume(config.resume, config.runs, config.name)
    if point is None:
        return config, None
    resumed = _flags(argv, load_config(point.run / "config.yaml"))
    return dataclasses.replace(resumed, name=point.run.name, runs=point.run.parent), point


def _flags(argv: list[str], default: GrpoConfig) -> GrpoConfig:
    return tyro.cli(tyro.conf.OmitArgPrefixes[GrpoConfig], description=about(__doc__), default=default, args=argv)


def preflight(config: GrpoConfig, point: ResumePoint | None) -> None:
    """Find a user's mistakes before anything is started or written."""
    for pattern in (config.shards, config.heldout, config.novel):
        if pattern is not None:
            expand_shards([pattern])
    fetch(config.init, MODEL_FILE, config.revision)
    fetch(config.vae, VAE_FILE, config.revision)
    if point is None and not config.plan.wanted:
        RunFolder(config.runs / config.name).check_free()


def start_worker(config: GrpoConfig, stop: StopRequest) -> Any:
    """Connect to Ray (the cluster of a job, or one of our own) and take the worker that --placement names."""
    there = join_cluster()
    if config.cluster.placement == "distributed":
        return DistributedRun(lambda: stop.requested)
    return ColocatedActor(config, there)


def main(config: GrpoConfig, point: ResumePoint | None) -> None:
    """Run on Ray, from the first check to the report."""
    preflight(config, point)
    if config.cluster.placement == "colocated":
        config = dataclasses.replace(config, threads=config.threads or os.cpu_count() or 1)
    config = dataclasses.replace(config, resume=None, config=None)
    if config.plan.wanted:
        print(plan(config))
        return
    if (warning := loss_warning(config.runs)) is not None:
        print(warning, file=sys.stderr)
    stop = StopRequest()
    try:
        run = execute(config, point, start_worker(config, stop), stop)
    finally:
        ray.shutdown()
    report(config, run)


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
        # Only now: a run that cannot start leaves no folder behind.
        run = RunFolder.open(path, keep) if point else RunFolder.create(path, to_plain(config), keep)
        print(f"run {lasting(path)}: " + ", ".join(f"{name} {value}" for name, value in facts.items()))
        try:
            for losses in itertools.count(1):
                try:
                    finished = advance(config, run, worker, stop, point)
                    break
                except LearnerLost as lost:
                    point = after_loss(config, worker, lost, losses)
            print(worker.summary(), end="")
            if not finished:
                stopped(run)
            with run.final_model() as folder:
                worker.save_policy(folder)
        except KeyboardInterrupt:  # outside the training steps, or the second one
            stopped(run)
    finally:
        worker.close()
    return run


def stopped(run: RunFolder) -> NoReturn:
    """Say how to go on from what is saved, and end."""
    print(f"stopped; continue with: {continuing('grpo.py', run.path)}")
    sys.exit(STOPPED)


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


def after_loss(config: GrpoConfig, worker: Any, lost: LearnerLost, losses: int) -> ResumePoint:
    """Bring the learners back to the last checkpoint, and say where that is."""
    while losses <= config.cluster.max_restarts:
        point = find_resume("auto", config.runs, config.name)
        assert point is not None
        print(f"{lost}: restarting the learners from step {point.step}", file=sys.stderr)
        try:
            worker.restart(point.checkpoint)
            return point
        except LearnerLost as again:
            lost, losses = again, losses + 1
    path = config.runs / config.name
    raise UserError(
        f"{lost}, and the learners were restarted --max-restarts {config.cluster.max_restarts} times already: mend the "
        f"cause, then continue with {quoted('--resume', lasting(path))}"
    )


def report(config: GrpoConfig, run: RunFolder) -> None:
    """Print what the run gained, and draw it."""
    names = ["heldout", *(["novel"] if config.novel is not None else [])]
    for name in names:
        print("\n".join(compare(run.path, name, 0, config.steps).lines(name)))
    shards = TripletShards(expand_shards([config.heldout]))
    rows = [shards.usable(i) for i in range(config.monitor.image_conditions)]
    picture = before_after(run.path, "heldout", 0, config.steps, [(r.content, r.style, r.target) for r in rows])
    print(f"picture      {lasting(picture)}")
    print(f"model        {lasting(run.path / 'model')}")
    print(f"run          {lasting(run.path)}")
    print(f"TensorBoard  {quoted('tensorboard', '--logdir', lasting(run.path.parent))}")


def cli(argv: list[str] | None = None) -> None:
    """The program; `argv` is the command line by default."""
    exit_code(lambda: main(*parse(sys.argv[1:] if argv is None else argv)))


if __name__ == "__main__":
    cli()
