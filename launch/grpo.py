"""Fine-tune a StyleVAR model with GRPO, through Ray.

python launch/grpo.py --preset demo
ray job submit --working-dir . -- python launch/grpo.py --preset demo
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ray
import tyro

from data.shards import TripletShards, expand_shards
from launch.cli import exit_code
from launch.cluster import join_cluster
from launch.colocated import ColocatedWorker
from launch.config import GrpoConfig, default_for, load_config, to_plain
from launch.heldout import before_after, compare
from launch.loop import ActorProxy, Progress, score_heldout, train
from launch.plan.report import plan
from launch.run_folder import ResumePoint, RunFolder, find_resume
from launch.stop import STOPPED
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
    return tyro.cli(tyro.conf.OmitArgPrefixes[GrpoConfig], description=__doc__, default=default, args=argv)


def preflight(config: GrpoConfig, point: ResumePoint | None) -> None:
    """Find a user's mistakes before anything is started or written."""
    for pattern in (config.shards, config.heldout, config.novel):
        if pattern is not None:
            expand_shards([pattern])
    fetch(config.init, MODEL_FILE, config.revision)
    fetch(config.vae, VAE_FILE, config.revision)
    if point is None and not config.plan.wanted:
        RunFolder(config.runs / config.name).check_free()


def start_worker(config: GrpoConfig) -> Any:
    """Connect to Ray (the cluster of a job, or one of our own) and create the colocated actor."""
    there = join_cluster()
    wants_gpu = config.device == "cuda" or (config.device == "auto" and there.get("GPU", 0) >= 1)
    cpus = min(config.threads or 1, int(there.get("CPU", 1)))
    asked = {"CPU": cpus, "GPU": 1 if wants_gpu else 0}
    for kind, count in asked.items():
        if there.get(kind, 0) < count:
            raise UserError(
                f"the plan needs {count} {kind}, the Ray cluster has {there.get(kind, 0):g}: "
                f"give --device cpu or fewer --threads, or start Ray where they are"
            )
    actor = ray.remote(ColocatedWorker).options(name=f"stylevar-{config.name}", num_cpus=cpus, num_gpus=asked["GPU"])
    return actor.remote()


def wait(reference: Any) -> Any:
    """`ray.get`, with the error that the worker raised in place of Ray's wrapping of it."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise


def main(config: GrpoConfig, point: ResumePoint | None) -> None:
    """Run on Ray, from the first check to the report."""
    preflight(config, point)
    config = dataclasses.replace(config, threads=config.threads or os.cpu_count() or 1, resume=None, config=None)
    if config.plan.wanted:
        print(plan(config))
        return
    try:
        run = execute(config, point, ActorProxy(start_worker(config), wait))
    finally:
        ray.shutdown()
    report(config, run)


def execute(config: GrpoConfig, point: ResumePoint | None, worker: Any) -> RunFolder:
    """Set up, score the held-out sets, train, score again, save the model. Exits with 130 if a signal ended it early."""
    facts = worker.setup(config, point.checkpoint if point else None)
    path = config.runs / config.name
    keep = config.monitor.keep_checkpoints
    # Only now: a run that cannot start leaves no folder behind.
    run = RunFolder.open(path, keep) if point else RunFolder.create(path, to_plain(config), keep)
    progress = Progress(MergeController(config.merge))
    if point is not None and point.checkpoint is not None:
        progress.load(point.checkpoint / "progress.json")
        run.rewind(progress.steps, progress.merges)
    telemetry = Telemetry(run, progress.steps)
    print(f"run {path}: " + ", ".join(f"{name} {value}" for name, value in facts.items()))
    try:
        if progress.steps == 0:
            print("scoring the held-out conditions before training")
            score_heldout(config, worker, run, telemetry, 0)
        finished = train(config, worker, run, telemetry, progress)
        if not finished:
            print(f"stopped after step {progress.steps}; continue with: python launch/grpo.py --resume {path}")
            sys.exit(STOPPED)
        print("scoring the held-out conditions after training")
        score_heldout(config, worker, run, telemetry, config.steps)
        with run.final_model() as folder:
            worker.save_policy(folder)
    finally:
        telemetry.close()
    return run


def report(config: GrpoConfig, run: RunFolder) -> None:
    """Print what the run gained, and draw it."""
    names = ["heldout", *(["novel"] if config.novel is not None else [])]
    for name in names:
        print("\n".join(compare(run.path, name, 0, config.steps).lines(name)))
    shards = TripletShards(expand_shards([config.heldout]))
    rows = [shards.usable(i) for i in range(config.monitor.image_conditions)]
    picture = before_after(run.path, "heldout", 0, config.steps, [(r.content, r.style, r.target) for r in rows])
    print(f"picture      {picture}")
    print(f"model        {run.path / 'model'}")
    print(f"run          {run.path}")
    print(f"TensorBoard  tensorboard --logdir {run.path.parent}")


def cli(argv: list[str] | None = None) -> None:
    """The program; `argv` is the command line by default."""
    exit_code(lambda: main(*parse(sys.argv[1:] if argv is None else argv)))


if __name__ == "__main__":
    cli()
