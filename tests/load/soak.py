"""Train for many steps, and record the memory of every process and the size of the run's folder.

python tests/load/soak.py --steps 2000
python tests/load/soak.py --steps 20000 --tiny
python tests/load/soak.py --steps 300 -- --placement distributed

Trains the demo's model or, with --tiny, one of a few kilobytes, whose steps take milliseconds. Flags after -- go to
`launch/grpo.py`. Ends with 1 if the memory of a training process grew by more than the limit.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
SMALL = {"conditions": 1, "group": 2, "eval-conditions": 1, "eval-group": 1, "eval-unit": 1, "image-conditions": 1}
EVERY = {"eval-every": 100, "checkpoint-every": 50}
RAYS_OWN = (
    "raylet",
    "gcs_server",
    "monitor.py",
    "dashboard.py",
    "log_monitor.py",
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
)
"""Ray's services. They are listed, but what they need is not ours to limit."""
_STEP = re.compile(r"step +(\d+) ")
_MEMORY = re.compile(r"^(RssAnon|RssShmem|VmSwap|VmRSS):\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """The memory of one process after a number of steps, in MiB."""

    step: int
    process: str
    own: float
    """What only this process holds or shares in memory: without the pages of files, which belong to the cache."""
    resident: float


def small_shard(path: Path, triplets: int = 2) -> Path:
    """The first triplets of the demo's held-out shard."""
    with tarfile.open(ROOT / "data/demo/heldout-00000.tar") as whole, tarfile.open(path, "w") as part:
        keys: list[str] = []
        for member in whole:
            key = member.name.partition(".")[0]
            if key not in keys:
                keys.append(key)
            if len(keys) > triplets:
                break
            part.addfile(member, whole.extractfile(member))
    return path


def tiny_model(folder: Path) -> dict[str, object]:
    """Write a model and shards of twelve pixels. Returns the flags of a run with them."""
    sys.path.insert(0, str(ROOT / "tests/support"))
    sys.path.insert(0, str(ROOT))
    from grpo_files import write_inputs

    write_inputs(folder)
    shards = {"shards": folder / "train-0.tar", "heldout": folder / "heldout-0.tar", "novel": folder / "heldout-0.tar"}
    return {"init": folder / "sft", "vae": folder / "sft", **shards, "lora-rank": 2, "top-k": 20, "reward": "lite"}


def processes(root: int) -> dict[int, str]:
    """{pid: name} of a process and all that it has started."""
    driver = psutil.Process(root)
    return {process.pid: _name(process) for process in (driver, *driver.children(recursive=True))}


def _name(process: psutil.Process) -> str:
    try:
        words = process.cmdline() or [process.name()]
    except psutil.Error:
        return "gone"
    if words[0].startswith("ray::"):
        return words[0].split()[0].partition(".")[0]  # not the method that it runs at the moment
    return Path(next((word for word in words[:4] if word.endswith(".py")), words[0])).name


def memory(pid: int) -> tuple[float, float] | None:
    """A process's own and resident memory in MiB; None if it has ended."""
    try:
        found = dict(_MEMORY.findall(Path(f"/proc/{pid}/status").read_text()))
    except OSError:
        return None
    if "VmRSS" not in found:
        return None
    own = sum(int(found.get(name, 0)) for name in ("RssAnon", "RssShmem", "VmSwap"))
    return own / 1024, int(found["VmRSS"]) / 1024


def sizes(run: Path) -> dict[str, int]:
    """{folder: bytes} of the run's folder."""
    return {entry.name: _bytes(entry) for entry in sorted(run.iterdir()) if not entry.is_symlink()}


def _bytes(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size
    return sum(_bytes(entry) for entry in path.iterdir() if not entry.is_symlink())


def growth(values: list[float]) -> float:
    """How much the median of the last tenth is above that of the first tenth, as a share."""
    tenth = max(1, len(values) // 10)
    first, last = statistics.median(values[:tenth]), statistics.median(values[-tenth:])
    return last / first - 1


def watched(lines: Iterable[str], every: int) -> Iterator[int]:
    """The numbers of completed steps, from the run's output, of which `every` is a divisor. Prints the other lines."""
    for line in lines:
        match = _STEP.match(line)
        if match is None:
            print(line, end="", flush=True)
        elif int(match[1]) % every == 0:
            print(line, end="", flush=True)
            yield int(match[1])


def soak(command: list[str], run: Path, every: int, log: Path) -> tuple[list[Sample], list[dict[str, int]]]:
    """Run a training command. Returns the memory and the size of the run's folder after every few steps."""
    samples: list[Sample] = []
    folder: list[dict[str, int]] = []
    with log.open("w", newline="") as file, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        writer = csv.writer(file)
        assert program.stdout is not None
        for step in watched(program.stdout, every):
            for pid, name in processes(program.pid).items():
                if (now := memory(pid)) is not None:
                    samples.append(Sample(step, f"{name} {pid}", *now))
                    writer.writerow([step, f"{name} {pid}", *(f"{value:.2f}" for value in now)])
            folder.append(sizes(run))
            writer.writerow([step, "run folder", *(f"{name}={size}" for name, size in folder[-1].items())])
            file.flush()
    if program.returncode:
        sys.exit(f"{' '.join(command)} ended with {program.returncode}")
    return samples, folder


def report(samples: list[Sample], folder: list[dict[str, int]], warm: int, limit: float) -> bool:
    """Print what grew. Returns whether every process that lived to the end stayed within the limit."""
    last, held = max(sample.step for sample in samples), True
    print(f"\nmemory in MiB from step {warm} to {last}")
    print(f"{'process':32} {'own, first':>10} {'last':>8} {'peak':>8} {'growth':>8} {'resident':>9} {'growth':>8}")
    for process in dict.fromkeys(sample.process for sample in samples if sample.step == last):
        own = [sample.own for sample in samples if sample.process == process and sample.step >= warm]
        resident = [sample.resident for sample in samples if sample.process == process and sample.step >= warm]
        grown = growth(own)
        too_much = grown > limit and process.split()[0] not in RAYS_OWN
        held = held and not too_much
        print(
            f"{process:32} {own[0]:10.1f} {own[-1]:8.1f} {max(own):8.1f} {grown:+8.2%} {resident[-1]:9.1f} "
            f"{growth(resident):+8.2%}{'  TOO MUCH' if too_much else ''}"
        )
    print("\nrun folder in MB, at the first and the last sample")
    for name in folder[-1]:
        print(f"{name:32} {folder[0].get(name, 0) / 1e6:10.2f} {folder[-1][name] / 1e6:8.2f}")
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="GRPO steps")
    parser.add_argument("--tiny", action="store_true", help="train a tiny model")
    parser.add_argument("--every", type=int, default=10, help="steps between samples")
    parser.add_argument("--warm", type=int, default=200, help="growth counts from this step on")
    parser.add_argument("--limit", type=float, default=0.01, help="growth allowed, as a share")
    parser.add_argument("--out", type=Path, default=None, help="folder for the run and the samples; kept if given")
    parser.add_argument("flags", nargs="*", help="more flags for launch/grpo.py")
    given = parser.parse_args()
    out = given.out or Path(tempfile.mkdtemp(prefix="soak-"))
    out.mkdir(parents=True, exist_ok=True)
    shard = small_shard(out / "heldout.tar")
    flags = {**SMALL, **EVERY, "steps": given.steps, "heldout": shard, "novel": shard, "runs": out, "name": "soak"}
    flags |= tiny_model(out) if given.tiny else {}
    command = [sys.executable, str(ROOT / "launch/grpo.py")]
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))] + given.flags
    os.environ["PYTHONUNBUFFERED"] = "1"  # each step's line is to come at once
    try:
        samples, folder = soak(command, out / "soak", given.every, out / "memory.csv")
    finally:
        if given.out is None:
            shutil.rmtree(out)
    if not report(samples, folder, given.warm, given.limit):
        sys.exit(1)


if __name__ == "__main__":
    main()
