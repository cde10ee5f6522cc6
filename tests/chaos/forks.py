"""Starts the program in forks of this process, which has imported everything: a run of the tiny model takes a second.

This process must have no threads, or a fork could find a lock taken for ever.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from patience import HANG
from tqdm import tqdm

from launch import grpo

ROOT = Path(__file__).resolve().parents[2]
PATHS = (str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "chaos"))


@dataclass(frozen=True)
class Job:
    """One start of `launch/grpo.py ARGV`; its output is appended to `log`."""

    argv: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def run(job: Job, prepare: Callable[[], object]) -> int:
    """Run the program in a fork, after `prepare` there. Returns its exit code, negative for a signal; see `wait`."""
    return wait(start(job, prepare))


def start(job: Job, prepare: Callable[[], object]) -> int:
    """Start the program in a fork, after `prepare` there. Returns its process id."""
    pid = os.fork()
    if pid == 0:
        run_here(job, prepare)
    return pid


def wait(pid: int) -> int:
    """The exit code of a program. Raises TimeoutError if it hangs, after ending it."""
    until = time.monotonic() + HANG
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"process {pid} hangs")
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(ended[1])


def run_here(job: Job, prepare: Callable[[], object]) -> NoReturn:
    """Be the program: run it in this process, a fork, and end the process."""
    atexit._clear()  # what the parent process does at its end is not this one's to do
    code = 1
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((0, nothing), (1, log), (2, log)):
        os.dup2(there, here)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    os.environ.update(job.environment)
    try:
        prepare()
        grpo.cli(list(job.argv))
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def warm_up(job: Job) -> None:
    """Run the program once in this process: much is imported and prepared only when it is first used."""
    tqdm.monitor_interval = 0  # no thread
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as runs, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        grpo.cli([*job.argv, "--runs", runs])
    threads = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    # Arrow's own allocator, which is not in use here, has a thread that survives forks.
    assert len([name for name in threads if name != "jemalloc_bg_thd"]) == 1, threads
