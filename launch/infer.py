"""Stylise pictures: every content picture in the style of every style picture, or the pairs of a table.

python launch/infer.py                  # a few of the demo's pictures
python launch/infer.py --content photo.jpg --style painting.jpg --out stylised.png
python launch/infer.py --content photos/ --style 'paintings/*.jpg' --out stylised/ --fit pad
python launch/infer.py --pairs pairs.csv --out stylised/ --best-of 8

Unusable pictures are skipped and listed at the end. The exit code is 0 if there are results, 2 if there are none, and 130
after Ctrl-C. Finished results are kept, and --skip-existing continues from there.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common import cli
from launch.common.loading import loading
from launch.stylise.config import InferConfig


def main(config: InferConfig) -> None:
    with loading():
        from launch.stylise.run import stylise

    stylise(config)


if __name__ == "__main__":
    cli.run(main, InferConfig)
