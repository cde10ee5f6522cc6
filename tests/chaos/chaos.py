"""A campaign of faults: `make chaos`, or python tests/chaos/chaos.py --seed 0 --local 200 --ray 12 --out results.jsonl."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATHS = (str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "chaos"))
sys.path[:0] = PATHS

if __name__ == "__main__" and "LD_PRELOAD" not in os.environ:
    # Start again with the library that disturbs writes, and before anything slow is imported.
    library = Path(tempfile.mkdtemp(prefix="chaos-"), "file_faults.so")
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, ROOT / "tests/chaos/file_faults.c", "-ldl"], check=True)
    own = {"LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1"}
    own["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # the usual one has a thread
    own["RAY_AUTH_MODE"] = "token"  # the cluster has a token, which drivers then read from its file
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **own})

import faults
import psutil
import schedules
from faults import Fault, FileFault
from fickle import MOOD
from lab import Ending, Lab, damage_newest, sound
from schedules import Schedule
from small_disk import enlarge, small_disk


@dataclass(frozen=True)
class Result:
    """What became of a schedule: `broken` is what the run did not keep of its promises, empty if it kept all."""

    schedule: Schedule
    broken: str
    codes: tuple[int, ...]
    seconds: float


def attempt(lab: Lab, schedule: Schedule) -> Result:
    """Carry out a schedule."""
    lab.whole(schedule.staleness)  # chooses the seed
    start, codes = time.monotonic(), []
    broken = ""
    with contextlib.ExitStack() as stack:
        if schedule.disk is not None:
            stack.enter_context(small_disk(lab.runs / schedule.name, max(4096, int(schedule.disk * lab.size))))
        if schedule.mood:
            lab.mood(schedule.name).write_text(schedule.mood)
        for program in schedule.programs:
            ending = lab.run(schedule.name, [_of(fault, schedule) for fault in program], schedule.staleness)
            codes.append(ending.code)
            broken = broken or ending.broken(_codes(schedule, program))
        broken = broken or _second_driver(lab, schedule)
        says, last = "", (0,)
        if schedule.damage is not None and (left := damage_newest(lab.runs / schedule.name, *schedule.damage)):
            # The only checkpoint may be damaged where it does no harm, such as in a README.
            says, last = ("is damaged", (0,)) if left > 1 else ("", (0, 2))
        if schedule.disk is not None:
            enlarge(lab.runs / schedule.name)
        ending = lab.run(schedule.name, staleness=schedule.staleness)
        codes.append(ending.code)
        broken = broken or ending.broken(last)
        if not broken and ending.code == 0:
            broken = _end(lab, schedule, says, ending)
    return Result(schedule, broken, (*codes,), time.monotonic() - start)


def _of(fault: Fault, schedule: Schedule) -> Fault:
    """The fault, with the run's own path."""
    return replace(fault, part=fault.part.format(name=schedule.name)) if isinstance(fault, FileFault) else fault


def _codes(schedule: Schedule, program: tuple[Fault, ...]) -> tuple[int, ...]:
    """How a program may end."""
    if schedule.disk is not None or schedule.mood.endswith("raises"):
        return faults.REFUSED
    if schedule.mood.endswith("hangs") and schedule.staleness is None:
        return (*faults.STOPPED, -signal.SIGINT)  # somebody presses Ctrl-C until it ends
    if schedule.mood.endswith("hangs"):
        return (0,)
    if schedule.mood.endswith("NaN"):
        return faults.REFUSED  # refused when the reward is tried before the run
    return tuple({code for fault in program for code in fault.codes})


def _end(lab: Lab, schedule: Schedule, says: str, ending: Ending) -> str:
    """What is wrong with the finished run."""
    if says not in ending.said:
        return f"the last program does not say {says!r}"
    if schedule.mood.endswith("NaN") and "not finite" in lab.log(schedule.name).read_text():
        return "" if sound(lab.runs / schedule.name) else "weights that are NaN"
    differences = lab.differences(schedule.name, schedule.staleness)
    return f"other than the undisturbed run: {differences}" if differences else ""


def _second_driver(lab: Lab, schedule: Schedule) -> str:
    log = lab.log(schedule.name).with_suffix(".second")
    if not log.exists():
        return ""
    said = log.read_text()
    refused = said.endswith("exit code 2\n") and "is being written by" in said
    too_late = said.endswith("exit code 0\n") and "nothing is left to do" in said  # the first has just finished
    return "" if refused or too_late else f"the second driver: {said}"


RAY = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 4, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
for _ in sys.stdin:
    for old in [old for old in cluster.worker_nodes if old.dead_processes()]:
        cluster.remove_node(old, allow_graceful=False)
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(**node)
    print(cluster.address, flush=True)
"""
"""A program that starts a Ray of three nodes for many runs. Two nodes hold a run.

For every line of its input, it replaces lost nodes and prints the address. It ends with its input.
"""


class RayCluster:
    """A Ray for many runs, whose reward finds its mood in `folder`."""

    def __init__(self, folder: Path, spill: Path) -> None:
        """`spill`: the folder into which its object stores may grow."""
        environment = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "RAY_ADDRESS")}
        environment |= {MOOD: str(folder / "mood"), "RAY_worker_niceness": "0", "RAY_object_spilling_directory": str(spill)}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, "-c", RAY], env=environment, stdin=pipe, stdout=pipe, text=True)
        self.pid = self._process.pid

    def mend(self) -> str:
        """Replace lost nodes. Returns the address."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        while (line := self._process.stdout.readline()) and ":" not in line:
            pass  # Ray's own words
        return line.strip()

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def sweep(ray_process: int) -> None:
    """End what a killed driver has left on the cluster, so that the next schedule meets only its own processes."""
    for process in faults.actors(ray_process):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def campaign(seed: int, local: int, ray: int, jobs: int, out: Path) -> None:
    """Try `local` and `ray` schedules with the seeds from `seed` on, `jobs` of the local ones at a time.

    Appends each result to `out` as a line of JSON.
    """
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        if local:
            lab = Lab(Path(folder, "local"))
            lab.prepare(schedules.PARTS.values())
            drawn = [schedules.local(number, lab.operations.__getitem__) for number in range(seed, seed + local)]
            in_forks(drawn, jobs, lambda schedule: note(attempt(lab, schedule), out))
        if ray:
            spill = Path(folder, "spill")
            with small_disk(spill, 2**22), RayCluster(Path(folder, "ray"), spill) as cluster:
                lab = Lab(Path(folder, "ray"), cluster.mend(), cluster.pid)
                for number in range(seed, seed + ray):
                    note(attempt(lab, schedules.distributed(number)), out)
                    sweep(cluster.pid)
                    lab.mood("").unlink(missing_ok=True)
                    cluster.mend()


def in_forks(schedules: Sequence[Schedule], jobs: int, do: Callable[[Schedule], object]) -> None:
    """Carry out every schedule in a process of its own, `jobs` at a time."""
    waiting, running = list(reversed(schedules)), set()
    while waiting or running:
        while waiting and len(running) < jobs:
            schedule = waiting.pop()
            pid = os.fork()
            if pid == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    try:
                        do(schedule)
                        code = 0
                    except BaseException:
                        print(f"{schedule.name}: {traceback.format_exc()}", flush=True)
                os._exit(code)
            running.add(pid)
        running.discard(os.wait()[0])


def note(result: Result, out: Path) -> None:
    """Print a result and append it to the file."""
    schedule = result.schedule
    said = "held" if not result.broken else f"BROKEN: {result.broken}"
    line = f"{schedule.name:10s} {result.seconds:6.1f} s  {schedule.kind}: {said}"
    if result.broken:
        alone = "LOCAL=1 RAY=0" if schedule.staleness is None else "LOCAL=0 RAY=1"
        line += f"\n  alone: make chaos SEED={schedule.seed} {alone}"
    print(line, flush=True)
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"name": schedule.name, "kind": schedule.kind, **asdict(result)}) + "\n")


def table(results: Sequence[dict]) -> str:
    """How many schedules of each kind were tried, and how many held."""
    tried = Counter((r["name"].partition("-")[0], r["kind"]) for r in results)
    held = Counter((r["name"].partition("-")[0], r["kind"]) for r in results if not r["broken"])
    lines = [f"| {where} | {kind} | {count} | {held[where, kind]} |" for (where, kind), count in sorted(tried.items())]
    whole = f"| | all | {len(results)} | {sum(not r['broken'] for r in results)} |"
    return "\n".join(["| where | fault | tried | held |", "|---|---|---|---|", *lines, whole])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first schedule's seed")
    parser.add_argument("--local", type=int, default=200, help="schedules for runs in one process, about 3 s each")
    parser.add_argument("--ray", type=int, default=12, help="schedules for runs on a Ray cluster, about a minute each")
    parser.add_argument("--jobs", type=int, default=1, help="how many of the former to try at the same time")
    parser.add_argument("--out", type=Path, default=Path("chaos.jsonl"), help="file to which results are appended")
    flags = parser.parse_args()
    # In the background, shells make programs ignore Ctrl-C, which some schedules send.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = flags.out.stat().st_size if flags.out.exists() else 0
    campaign(flags.seed, flags.local, flags.ray, flags.jobs, flags.out)
    results = [json.loads(line) for line in flags.out.read_bytes()[before:].splitlines()]
    print(table(results))
    sys.exit(len(results) < flags.local + flags.ray or any(result["broken"] for result in results))


if __name__ == "__main__":
    main()
