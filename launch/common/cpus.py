"""How many CPUs this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath
from typing import Annotated

from annotated_types import Ge

from stylevar.bounds import Remedy

Threads = Annotated[int, Ge(0), Remedy("0 takes all cores")]
"""A flag for the number of threads of a process; 0 for all cores."""
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """CPUs that this process may use: those in its affinity mask (`taskset`, Slurm), or fewer if its cgroup limits the CPU
    time (Docker, Kubernetes). At least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(MEMBERSHIP, CGROUPS)
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def cgroup_quota(membership: Path, root: Path) -> float | None:
    """CPU seconds per second that the strictest of a process's cgroups (v1 or v2) allows; None without a limit.

    Args:
        membership: a file with the process's cgroups, such as /proc/self/cgroup.
        root: where the cgroup file systems are mounted.
    """
    lines = _lines(membership)
    quotas = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = [root / controllers, root / "cpu"] if controllers else [root, root / "unified"]
        # In a container the path can be the host's, whose folders are not mounted; the root still is.
        groups = [mount / str(parent).lstrip("/") for mount in mounts for parent in _with_parents(path)]
        quotas += [quota for group in groups if (quota := _quota(group)) is not None]
    return min(quotas, default=None)


def _with_parents(path: str) -> list[PurePosixPath]:
    own = PurePosixPath(path)
    return [own, *own.parents]


def _quota(group: Path) -> float | None:
    """The limit of one cgroup: `cpu.max` holds "quota period" in v2, and two files hold them in v1."""
    fields = " ".join(_lines(group / "cpu.max")).split()
    if not fields:
        fields = _lines(group / "cpu.cfs_quota_us") + _lines(group / "cpu.cfs_period_us")
    try:
        quota, period = map(int, fields)
    except ValueError:
        return None  # "max", or no such files
    return quota / period if quota > 0 and period > 0 else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
