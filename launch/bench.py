"""Speed, memory and learning, measured on this machine.

python launch/bench.py data
python launch/bench.py scale
python launch/bench.py step --depth 20 --group 2
python launch/bench.py infer --depth 20 --batch-sizes 1 4
python launch/bench.py cost
python launch/bench.py learn --seconds 300 --seeds 0 1 2
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from launch.benchmarks.cost import Cost
from launch.benchmarks.data import Data
from launch.benchmarks.infer import Infer
from launch.benchmarks.learn import Learn
from launch.benchmarks.scale import Scale
from launch.benchmarks.step import Step
from launch.common.cli import about, exit_code


def main() -> None:
    kinds = {"data": Data, "scale": Scale, "step": Step, "infer": Infer, "cost": Cost, "learn": Learn}
    commands: dict[str, Any] = {name: Annotated[kind, tyro.conf.OmitArgPrefixes] for name, kind in kinds.items()}
    exit_code(lambda: tyro.extras.subcommand_cli_from_dict(commands, description=about(__doc__)).run())


if __name__ == "__main__":
    main()
