"""Commands to print: quoted, so that users can paste them into a shell, and with paths that outlast a Ray job."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets this variable for the programs of its jobs."""
JOB_FOLDERS = "runtime_resources"
"""Ray keeps the working directories of jobs in a folder of this name, and removes them with the job."""


def command(program: str, *arguments: object) -> str:
    """`python launch/PROGRAM ARGUMENTS`, quoted for a shell."""
    return shlex.join(["python", f"launch/{program}", *map(str, arguments)])


def quoted(*words: object) -> str:
    """`words` quoted for a shell."""
    return shlex.join(map(str, words))


def lasting(path: Path) -> Path:
    """`path` for printing: absolute in a Ray job, because users do not work in the job's directory."""
    return path.resolve() if JOB_CONFIG in os.environ else path


def continuing(program: str, run: Path) -> str:
    """The command that continues the run in the folder `run` from its last checkpoint, or from its start."""
    return command(program, "--resume", lasting(run))


def loss_warning(runs: Path) -> str | None:
    """A warning if `runs` is in the temporary working directory of a Ray job."""
    folder = runs.resolve()
    if JOB_CONFIG not in os.environ or JOB_FOLDERS not in folder.parts:
        return None
    return (
        f"warning: the run is written to {folder}, in this job's working directory, which Ray removes after the job: "
        "to keep the run, give --runs an absolute path on a shared disk, as in --runs /data/runs"
    )
