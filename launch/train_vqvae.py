"""Train a small VQ-VAE on the images of triplet shards (contents and targets), and report its reconstructions.

python launch/train_vqvae.py --shards 'data/demo/train-*.tar' --heldout 'data/demo/heldout-*.tar' --out runs/vqvae
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from launch.common import cli
from launch.common.loading import loading
from launch.configs.vqvae import TrainVqvaeConfig


def main(config: TrainVqvaeConfig) -> None:
    with loading():
        from launch.supervised.vqvae import train

    train(config)


if __name__ == "__main__":
    cli.run(main, tyro.conf.OmitArgPrefixes[TrainVqvaeConfig])
