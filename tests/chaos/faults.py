"""What goes wrong in a process that runs the program, and how it may end then."""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import errno
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import forks
import hog
import psutil

from launch.cluster import start
from launch.cluster.distributed import DistributedRun
from launch.cluster.pool import Calls
from launch.rl.colocated import ColocatedWorker
from launch.rl.worker import Worker

STOPPED = (0, 130)
"""Exit codes after a signal that asks to stop; 0 if it came after the last step."""
REFUSED = (0, 2)
"""Exit codes after an error that ends the run; 0 if the run could do without what failed."""


@dataclass(frozen=True)
class FileFault:
    """At operation number `at` on files whose path contains `part`, something happens.

    kill: SIGKILL. TERM: SIGTERM. full: no space from then on. EIO: this operation fails. second: another driver resumes the
    run. clock: the clock jumps by `seconds`. count: nothing, but the program ends with the line "operations: NUMBER".
    """

    part: str
    at: int
    what: str
    seconds: float = 0.0

    @property
    def codes(self) -> tuple[int, ...]:
        codes = {"kill": (0, -signal.SIGKILL), "TERM": STOPPED, "full": REFUSED, "EIO": REFUSED}
        return codes.get(self.what, (0,))


@dataclass(frozen=True)
class CallFault:
    """At call number `call` of a worker's method, the driver gets a signal (by name)."""

    method: str
    call: int
    signal: str

    @property
    def codes(self) -> tuple[int, ...]:
        return (0, -signal.SIGKILL) if self.signal == "SIGKILL" else STOPPED


@dataclass(frozen=True)
class ClockFault:
    """The program starts with a clock that is wrong by `seconds`."""

    seconds: float

    @property
    def codes(self) -> tuple[int, ...]:
        return (0,)


@dataclass(frozen=True)
class ActorFault:
    """In call number `call` of the distributed worker's `method`, `polls` looks at its calls later, a process gets a signal.

    role: an actor's class, driver, or raylet, without which a node is lost. which: its number among those of its role.
    """

    method: str
    call: int
    polls: int
    role: str
    which: int
    signal: str

    @property
    def codes(self) -> tuple[int, ...]:
        if self.role != "driver" or self.signal == "SIGSTOP":
            return REFUSED  # a worker that is lost while the run starts may end it
        return (0, -signal.SIGKILL) if self.signal == "SIGKILL" else STOPPED


@dataclass(frozen=True)
class StoreFault:
    """From call number `call` of the distributed worker's `method` on, Ray's object stores are full, for `seconds`."""

    method: str
    call: int
    seconds: float

    @property
    def codes(self) -> tuple[int, ...]:
        return REFUSED


Fault = FileFault | CallFault | ClockFault | ActorFault | StoreFault


def inject(faults: Sequence[Fault], job: forks.Job, local: bool) -> None:
    """Prepare this process, a fork, for all that shall happen to it. `local`: work in this process, not through Ray."""
    if local:
        start.start_worker = lambda config, stop: ColocatedWorker()
    actors = []
    for fault in faults:
        match fault:
            case FileFault():
                _inject_into_files(fault, job)
            case CallFault():
                _at_call(ColocatedWorker, fault.method, fault.call, lambda f=fault: os.kill(os.getpid(), _number(f.signal)))
            case ClockFault():
                _shift_clock(fault.seconds)
            case ActorFault():
                actors.append(fault)
            case StoreFault():
                _at_call(DistributedRun, fault.method, fault.call, lambda f=fault: _fill(f))
    if actors:
        _haunt(actors)


def _arm(part: str, at: int, number: int, error: int, from_then_on: bool) -> None:
    library = ctypes.CDLL(None)
    library.faults_arm(part.encode(), ctypes.c_long(at), number, error, int(from_then_on))


def _inject_into_files(fault: FileFault, job: forks.Job) -> None:
    number = {"kill": signal.SIGKILL, "TERM": signal.SIGTERM, "second": signal.SIGUSR1, "clock": signal.SIGUSR2}
    error = {"full": errno.ENOSPC, "EIO": errno.EIO}
    signal.signal(signal.SIGUSR1, lambda *_: _second_driver(job))
    signal.signal(signal.SIGUSR2, lambda *_: _shift_clock(fault.seconds))
    if fault.what == "count":
        atexit.register(lambda: os.write(1, b"operations: %d\n" % ctypes.CDLL(None).faults_counted()))
    _arm(fault.part, fault.at, number.get(fault.what, 0), error.get(fault.what, 0), fault.what == "full")


def _second_driver(job: forks.Job) -> None:
    pid = os.fork()
    if pid == 0:
        other = dataclasses.replace(job, log=job.log.with_suffix(".second"))
        forks.run_here(other, lambda: _arm("/", 0, 0, 0, False))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with job.log.with_suffix(".second").open("a", encoding="utf-8") as log:
        log.write(f"exit code {code}\n")


def _shift_clock(seconds: float) -> None:
    true = time.time
    time.time = lambda: true() + seconds


def _number(name: str) -> int:
    return int(signal.Signals[name])


def _at_call(owner: type, method: str, call: int, deed: Callable[[], object]) -> None:
    """Do something at the beginning of call number `call` of a method."""
    original, calls = getattr(owner, method), itertools.count(1)

    def disturbed(self: Worker, *arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            deed()
        return original(self, *arguments, **named)

    setattr(owner, method, disturbed)


def _haunt(faults: list[ActorFault]) -> None:
    """Let each fault happen in its call. One whose process is not there yet happens as soon as it is."""
    due: list[list[Any]] = []
    for fault in faults:
        _at_call(DistributedRun, fault.method, fault.call, lambda f=fault: due.append([f.polls, f]))
    poll = Calls.poll

    def haunted(self: Calls, *arguments: Any, **named: Any) -> None:
        for entry in list(due):
            entry[0] -= 1
            if entry[0] < 0 and _strike(entry[1]):
                due.remove(entry)
        poll(self, *arguments, **named)

    Calls.poll = haunted


def _strike(fault: ActorFault) -> bool:
    """Send the signal. Returns whether the process was there."""
    if fault.role == "driver":
        if fault.signal == "SIGSTOP":
            subprocess.Popen(["sh", "-c", f"sleep 2; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), _number(fault.signal))
        return True
    ray_process = int(os.environ["CHAOS_RAY"])
    found = raylets(ray_process) if fault.role == "raylet" else actors(ray_process, fault.role)
    if not found:
        return False
    found[fault.which % len(found)].send_signal(_number(fault.signal))
    print(f"chaos: {fault}", flush=True)
    return True


def _fill(fault: StoreFault) -> None:
    print(f"chaos: {fault}, {hog.fill_stores(fault.seconds)} bytes", flush=True)


def raylets(ray_process: int) -> list[psutil.Process]:
    """The raylets of all nodes but the head, of a Ray that `ray_process` started."""
    found = [process for process in psutil.Process(ray_process).children() if process.name() == "raylet"]
    return sorted(found, key=psutil.Process.create_time)[1:]


def actors(ray_process: int, role: str = "") -> list[psutil.Process]:
    """The actors' processes of a Ray that `ray_process` started, in the order of their start."""
    found = []
    for process in psutil.Process(ray_process).children(recursive=True):
        try:
            line = " ".join(process.cmdline())
            # Ray's own agents have such names, too, and a node ends with its agents.
            if process.status() != psutil.STATUS_ZOMBIE and f"ray::{role}" in line and "Agent" not in line:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda process: (process.create_time(), process.pid))
