"""Speed and memory, measured on this machine.

python launch/bench.py data
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from launch.benchmarks.data import Data
from launch.cli import exit_code


def main() -> None:
    commands: dict[str, Any] = {"data": Annotated[Data, tyro.conf.OmitArgPrefixes]}
    exit_code(lambda: tyro.extras.subcommand_cli_from_dict(commands, description=__doc__).run())


if __name__ == "__main__":
    main()
