"""Train an AdaIN decoder for one encoder, on random pairs of the contents and styles in shards.

python launch/train_adain.py --shards 'data/demo/train-*.tar' --out runs/adain_lite
python launch/train_adain.py --shards 'data/omnistyle/train-*.tar' --encoder vgg --vgg vgg19.pth --out runs/adain
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from launch.common import cli
from launch.common.commands import command, quoted
from launch.common.loading import loading
from launch.common.stop import STOPPED
from launch.evaluation.baselines.config import TrainAdainConfig


def main() -> None:
    def body() -> None:
        config = tyro.cli(tyro.conf.OmitArgPrefixes[TrainAdainConfig], description=cli.about(__doc__))
        with loading():
            from launch.evaluation.baselines.training import train

        path, finished = train(config)
        vgg = [] if config.vgg is None else ["--adain-vgg", config.vgg]
        print(f"use it with: {command('eval.py', '--methods', f'adain={path}', *vgg)}")
        if not finished:
            print(f"stopped early; continue with {quoted('--init', path)} and another --out")
            sys.exit(STOPPED)

    cli.exit_code(body)


if __name__ == "__main__":
    main()
