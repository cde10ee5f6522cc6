"""Supervised fine-tuning on (content, style, target) triplets.

python launch/sft.py --shards 'data/demo/train-*.tar' --val-shards 'data/demo/heldout-*.tar' --vae vqvae.safetensors
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from launch.common import cli
from launch.common.commands import continuing, lasting, loss_warning, quoted
from launch.common.loading import loading
from launch.common.stop import STOPPED, StopRequest
from launch.configs.sft import MAY_CHANGE, PROGRAM, SftConfig, load_config
from launch.run.resume import NothingLeft, check_changes, check_minutes
from launch.run.run_folder import ResumePoint, find_resume
from launch.run.run_lock import only_writer
from stylevar.errors import UserError


def parse(argv: Sequence[str], description: str | None) -> tuple[SftConfig, ResumePoint | None]:
    """Parse a command line into a config and, for --resume, the point to resume; the run's config gives the defaults."""
    kind = tyro.conf.OmitArgPrefixes[SftConfig]
    config: SftConfig = tyro.cli(kind, args=argv, description=description)
    point = None if config.resume is None else find_resume(config.resume, Path(config.runs), config.name)
    if point is not None:
        before = replace(load_config(point.run / "config.yaml"), name=point.run.name, runs=str(point.run.parent))
        config = tyro.cli(kind, args=argv, description=description, default=before)
        check_changes(point, before.absolute(), config.absolute(), MAY_CHANGE)
    if not config.shards:
        raise UserError("no training data: give --shards, e.g. --shards 'data/demo/train-*.tar'")
    return replace(config, resume=None), point


def train(config: SftConfig, point: ResumePoint | None = None) -> Path | None:
    """Run SFT from the start or from `point`. Returns the folder of the trained model, or None if the run was stopped.

    Raises NothingLeft if the run is already finished.
    """
    with only_writer(Path(config.runs) / config.name if point is None else point.run):
        if point is not None and point.checkpoint is not None:
            from launch.supervised.run import minutes_trained

            check_minutes(point, minutes_trained(point.checkpoint), config.minutes)
        if config.workers > 1:
            from launch.supervised.parallel import train_parallel

            return train_parallel(config, point)
        return train_here(config, point)


def train_here(config: SftConfig, point: ResumePoint | None) -> Path | None:
    """`train` in this process."""
    with loading():
        from launch.common.device import choose_device, set_threads
        from launch.run.drive import drive
        from launch.supervised.run import SftRun
        from stylevar.allocator import keep_freed_memory

    keep_freed_memory()
    set_threads(config.threads)
    return drive(SftRun(config, point, choose_device(config.device)), PROGRAM, StopRequest())


def main() -> None:
    def body() -> None:
        config, point = parse(sys.argv[1:], cli.about(__doc__))
        run = point.run if point else Path(config.runs) / config.name
        if (warning := loss_warning(run)) is not None:
            print(warning, file=sys.stderr)
        try:
            folder = train(config, point)
        except NothingLeft as finished:
            print(finished)
            return
        except KeyboardInterrupt:  # outside the training steps, or a second Ctrl-C
            if not (run / "config.yaml").is_file():
                raise
            folder = None
        if folder is None:
            print(f"stopped; continue with: {continuing(PROGRAM, run)}")
            sys.exit(STOPPED)
        curves = quoted("tensorboard", "--logdir", lasting(folder.parent / "tensorboard"))
        print(f"the model is {lasting(folder)}; see the curves with: {curves}")

    cli.exit_code(body)


if __name__ == "__main__":
    main()
