"""Fine-tune a StyleVAR model with GRPO, through Ray.

python launch/grpo.py
ray job submit --working-dir . -- python launch/grpo.py
python launch/grpo.py --preset paper --init sft/model --vae vqvae.safetensors --shards data/train --heldout data/val
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from data.patterns import expand_shards
from launch.common.cli import about, exit_code
from launch.common.commands import loss_warning
from launch.common.loading import loading
from launch.common.stop import StopRequest
from launch.configs.grpo import MAY_CHANGE, PROGRAM, GrpoConfig, default_for, flag, load_config
from launch.run.resume import NothingLeft, check_changes, check_steps
from launch.run.run_folder import ResumePoint, RunFolder, find_resume, new_folder
from launch.run.run_lock import only_writer
from launch.run.saving import saving
from stylevar.hub import fetch
from stylevar.source import VAE_FILE, locate


def parse(argv: list[str]) -> tuple[GrpoConfig, ResumePoint | None]:
    """Parse a command line into a config and, for --resume, the point to resume. Flags override a resumed run's config."""
    default, resume = default_for(argv), flag(argv, "--resume")
    point = None
    if resume is not None:
        point = find_resume(resume, Path(flag(argv, "--runs") or default.runs), flag(argv, "--name") or default.name)
    if point is None:
        return _flags(argv, default), None
    # Parsed only now, because flags that are valid for the run may be invalid with the preset.
    before = dataclasses.replace(load_config(point.run / "config.yaml"), name=point.run.name, runs=point.run.parent)
    config = _flags(argv, before)
    check_changes(point, before.absolute(), config.absolute(), MAY_CHANGE)
    return config, point


def _flags(argv: list[str], default: GrpoConfig) -> GrpoConfig:
    return tyro.cli(tyro.conf.OmitArgPrefixes[GrpoConfig], description=about(__doc__), default=default, args=argv)


def preflight(config: GrpoConfig, point: ResumePoint | None, named: bool = True) -> None:
    """Report a user's mistakes before anything is started or written."""
    for patterns in config.condition_patterns().values():
        expand_shards(patterns)
    locate(config.init, config.revision)
    fetch(config.vae, VAE_FILE, config.revision)
    if point is None and named:
        RunFolder(config.runs / config.name).check_free()


def main(config: GrpoConfig, point: ResumePoint | None, named: bool = True) -> None:
    """Run on Ray, from the first check to the report. A new run that the user has not `named` gets an unused name."""
    if config.plan.wanted:
        with loading():
            from launch.dry_run.plan import plan

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
    with loading():
        import ray

        from launch.cluster.start import start_worker

    config = dataclasses.replace(config, resume=None, config=None)
    stop, path = StopRequest(), config.runs / config.name
    with only_writer(path) if named or point else new_folder(path) as path:
        config = dataclasses.replace(config, name=path.name)
        try:
            worker = start_worker(config, stop)
            # Only now, while the worker's process loads its own libraries: Ray starts faster if nothing else runs.
            with loading():
                from launch.rl.run import execute, report

            run = execute(config, point, worker, stop)
        finally:
            ray.shutdown()
        with saving(run, PROGRAM):
            report(config, run)


def cli(argv: list[str] | None = None) -> None:
    """The program; `argv` is the command line by default."""
    words = sys.argv[1:] if argv is None else argv

    def body() -> None:
        config, point = parse(words)
        if point is None and flag(words, "--preset") is None and flag(words, "--config") is None:
            print("running with the settings of the embedded demo (--preset demo); --preset paper is for real data")
        # --resume auto must be able to find the run by its name.
        main(config, point, named=config.resume is not None or flag(words, "--name") is not None)

    exit_code(body)


if __name__ == "__main__":
    cli()
