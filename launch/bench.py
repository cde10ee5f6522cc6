"""Speed, memory and learning, measured on this machine.

python launch/bench.py data
python launch/bench.py scale
python launch/bench.py step --depth 20 --group 2
python launch/bench.py infer --depth 20 --batch-sizes 1 4
python launch/bench.py sft --depth 20 --batch 4
python launch/bench.py gpu
python launch/bench.py cost
python launch/bench.py credit
python launch/bench.py learn --seconds 300 --seeds 0 1 2
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from launch.benchmarks.config import Cost, Credit, Data, Gpu, Infer, Learn, Scale, Sft, Step
from launch.common.cli import about, exit_code
from launch.common.loading import loading

KINDS: dict[str, type] = {
    "data": Data,
    "scale": Scale,
    "step": Step,
    "infer": Infer,
    "sft": Sft,
    "gpu": Gpu,
    "cost": Cost,
    "credit": Credit,
    "learn": Learn,
}
"""The modules of `launch.benchmarks`, each with the flags of its `run`."""


def main() -> None:
    commands: dict[str, Any] = {name: Annotated[kind, tyro.conf.OmitArgPrefixes] for name, kind in KINDS.items()}

    def body() -> None:
        bench = tyro.extras.subcommand_cli_from_dict(commands, description=about(__doc__))
        name = next(name for name, kind in KINDS.items() if isinstance(bench, kind))
        with loading():
            module = import_module(f"launch.benchmarks.{name}")
        module.run(bench)

    exit_code(body)


if __name__ == "__main__":
    main()
