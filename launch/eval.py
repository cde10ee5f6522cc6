"""Evaluate checkpoints and baselines: the paper's metrics with their errors, and pictures of the best and worst results.

python launch/eval.py                   # the demo's model and the newest run's
python launch/eval.py --checkpoint runs/demo/model
python launch/eval.py --methods sft=runs/sft/model grpo=runs/demo/model --sweep-temperature 1 0.7 0.5 0.4
python launch/eval.py --shards data/val-*.tar --methods sft=runs/sft/model grpo=runs/grpo/model copy --compare grpo sft
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from launch.common.cli import about, exit_code
from launch.common.loading import loading
from launch.evaluation.config import EvalConfig


def main(config: EvalConfig) -> None:
    with loading():
        from launch.evaluation.evaluate import evaluate

    evaluate(config)


def cli(argv: list[str] | None = None) -> None:
    """The program; `argv` is the command line by default."""

    def body() -> None:
        logging.basicConfig(format="%(message)s")  # after `exit_code` has replaced sys.stderr, which logging keeps
        main(tyro.cli(tyro.conf.OmitArgPrefixes[EvalConfig], description=about(__doc__), args=argv))

    exit_code(body)


if __name__ == "__main__":
    cli()
