"""Fine-tune a StyleVAR model with GRPO, through Ray.

python launch/grpo.py
ray job submit --working-dir . -- python launch/grpo.py
python launch/grpo.py --preset paper --init sft/model --vae vqvae.safetensors --shards data/train --heldout data/val
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ray
import tyro

from data.shards import TripletShards, expand_shards
from launch.cluster.distributed import DistributedRun
from launch.cluster.learner_group import LearnerLost
from launch.cluster.pool import WorkerLost
from launch.common.cli import about, exit_code
from launch.common.commands import continuing, lasting, loss_warning, quoted
from launch.common.disk import saving
from launch.common.ray_cluster import join_cluster
from launch.common.stop import STOPPED, StopRequest
from launch.configs.grpo import MAY_CHANGE, GrpoConfig, default_for, flag, load_config, to_plain
from launch.dry_run.plan import plan
from launch.rl.colocated_actor import ColocatedActor
from launch.rl.heldout import before_after, compare
from launch.rl.loop import Progress, score_heldout, train
from launch.run.resume import NothingLeft, check_changes, check_steps
from launch.run.run_folder import ResumePoint, RunFolder, find_resume, new_folder
from launch.run.run_lock import only_writer
from launch.run.telemetry import Telemetry
from learner.grpo.merging import MergeController
from stylevar.checkpoint import MODEL_FILE, VAE_FILE
from stylevar.errors import UserError
from stylevar.hub import fetch

PROGRAM = "grpo.py"


def parse(argv: list[str]) -> tuple[GrpoConfig, ResumePoint | None]:
    """The configuration that a command line asks for, and where to resume. Flags win over a resumed run's config."""
    default, resume = default_for(argv), flag(argv, "--resume")
    point = None
    if resume is not None:
        point = find_resume(resume, Path(flag(argv, "--runs") or default.runs), flag(argv, "--name") or default.name)
    if point is None:
        return _flags(argv, default), None
    # Not before: flags that fit the run need not fit the preset.
    before = dataclasses.replace(load_config(point.run / "config.yaml"), name=point.run.name, runs=point.run.parent)
    config = _flags(argv, before)
    check_changes(point, before.absolute(), config.absolute(), MAY_CHANGE)
    return config, point


def _flags(argv: list[str], default: GrpoConfig) -> GrpoConfig:
    return tyro.cli(tyro.conf.OmitArgPrefixes[GrpoConfig], description=about(__doc__), default=default, args=argv)


def preflight(config: GrpoConfig, point: ResumePoint | None, named: bool = True) -> None:
    """Find a user's mistakes before anything is started or written."""
    for patterns in config.condition_patterns().values():
        expand_shards(patterns)
    fetch(config.init, MODEL_FILE, config.revision)
    fetch(config.vae, VAE_FILE, config.revision)
    if point is None and named:
        RunFolder(config.runs / config.name).check_free()


def start_worker(config: GrpoConfig, stop: StopRequest) -> Any:
    """Connect to Ray (the cluster of a job, or one of our own) and take the worker that --placement names."""
    there = join_cluster()
    if config.cluster.placement == "distributed":
        return DistributedRun(lambda: stop.requested)
    return ColocatedActor(config, there)


def main(config: GrpoConfig, point: ResumePoint | None, named: bool = True) -> None:
    """Run on Ray, from the first check to the report. A new run that is not `named` gets another name than old ones."""
    if config.plan.wanted:
        print(plan(dataclasses.replace(config, resume=None, config=None)))
        return
    if (warning := loss_warning(config.runs)) is not None:
        print(warning, file=sys.stderr)
    try:
        if point is not None:
            check_steps(point, config.steps)
    except NothingLeft as finished:
        print(finished)
        return
    preflight(config, point, named)
    config = dataclasses.replace(config, resume=None, config=None)
    stop, path = StopRequest(), config.runs / config.name
    with only_writer(path) if named or point else new_folder(path) as path:
        config = dataclasses.replace(config, name=path.name)
        try:
            run = execute(config, point, start_worker(config, stop), stop)
        finally:
            ray.shutdown()
        with saving(run, PROGRAM):
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
    except WorkerLost as lost:
        raise UserError(f"{lost}; nothing was saved yet: start again") from lost
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


def cli(argv: list[str] | None = None) -> None:
    """The program; `argv` is the command line by default."""
    words = sys.argv[1:] if argv is None else argv

    def body() -> None:
        config, point = parse(words)
        if point is None and flag(words, "--preset") is None and flag(words, "--config") is None:
            print("running with the settings of the embedded demo (--preset demo); --preset paper is for real data")
        # --resume auto has to find the run again by its name.
        main(config, point, named=config.resume is not None or flag(words, "--name") is not None)

    exit_code(body)


if __name__ == "__main__":
    cli()
