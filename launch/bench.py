"""Speed and memory, measured on this machine.

python launch/bench.py data
python launch/bench.py scale
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from launch.benchmarks.data import Data
from launch.benchmarks.scale import Scale
from launch.cli import exit_code


def main() -> None:
    kinds = {"data": Data, "scale": Scale}
    commands: dict[str, Any] = {name: Annotated[kind, tyro.conf.OmitArgPrefixes] for name, kind in kinds.items()}
    exit_code(lambda: tyro.extras.subcommand_cli_from_dict(commands, description=__doc__).run())


if __name__ == "__main__":
    main()
