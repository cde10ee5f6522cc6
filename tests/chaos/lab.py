"""Small runs of the program to disturb, and the comparison with the run that nobody disturbed."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faults
import forks
import torch
import yaml
from faults import Fault, FileFault
from fickle import MOOD
from forks import Job
from grpo_files import config, rows, write_inputs
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.configs.cluster import ClusterConfig
from launch.configs.grpo import GrpoConfig
from launch.configs.io import to_plain
from launch.run.run_folder import SIZES
from reward.config import RewardConfig
from stylevar.atomic import ASIDE

CLUSTER = ClusterConfig(
    placement="distributed",
    rollout_workers=2,
    learners=2,
    unit=1,
    rollout_cpus=1,
    reward_cpus=1,
    learner_cpus=1,
    call_timeout=60.0,
    max_restarts=50,
)
"""A worker that is only slow counts as hung after a minute: it is replaced, and the results stay the same."""


@dataclass(frozen=True)
class Ending:
    """How a program ended: its exit code, negative for a signal, and what it printed."""

    code: int
    said: str

    def broken(self, codes: Sequence[int]) -> str:
        """What it broke of the promise to end well or with one clear line; empty if nothing."""
        lines = [line for line in self.said.splitlines() if line.strip()]
        if self.code not in codes:
            return f"exit code {self.code} instead of {' or '.join(map(str, codes))}: {' | '.join(lines[-3:])}"
        if "Traceback" in self.said:
            return f"a traceback: {lines[-1]}"
        if self.code == 2 and (sum(line.startswith("error: ") for line in lines) != 1 or lines[-1][:7] != "error: "):
            return f"exit code 2 without one clear line at the end: {' | '.join(lines[-3:])}"
        return ""


class Lab:
    """Where programs are run: one folder, and the undisturbed run of each placement."""

    def __init__(self, folder: Path, ray_address: str = "", ray_process: int = 0) -> None:
        """`ray_address`: the cluster on which distributed runs take place, of the process `ray_process`."""
        self.folder, self.runs = folder, folder / "runs"
        self.runs.mkdir(parents=True)
        self._inputs = write_inputs(_made(folder / "inputs"))
        self._ray = {"RAY_ADDRESS": ray_address, "CHAOS_RAY": str(ray_process)}
        self.size, self.operations = 0, dict[str, int]()
        self._seeds = dict[int | None, int]()
        self.undisturbed = self.runs
        self._whole: dict[int | None, dict[str, Any]] = {}

    def settings(self, staleness: int | None) -> GrpoConfig:
        """A run with merges and rollbacks: in one process, or with a `staleness` on a cluster."""
        usual = config(self._inputs, self.runs)
        return replace(
            usual,
            seed=self._seeds.get(staleness, 0),
            steps=4,
            conditions=1 if staleness is None else 2,
            reward=RewardConfig(reward="fickle:Fickle"),
            # Given, so that they need not be measured.
            rollout=replace(usual.rollout, rollout_batch=2, decode_batch=2),
            # Ray's object store takes nothing below 100 KB, so a distributed run has larger adapters.
            learner=replace(usual.learner, micro_batch=2, lora_rank=usual.learner.lora_rank if staleness is None else 32),
            # A new peak is merged at once. Two steps later, any KL is too much: without a peak, the run rolls back.
            merge=replace(usual.merge, peak_min_steps=1, patience=0, emergency_kl=0.0, emergency_min_steps=2),
            monitor=replace(usual.monitor, eval_every=2),
            cluster=ClusterConfig() if staleness is None else replace(CLUSTER, max_staleness=staleness),
        )

    def run(self, name: str, disturbances: Sequence[Fault] = (), staleness: int | None = None) -> Ending:
        """Start the run `name`, or resume it if it exists, with `disturbances` on the way."""
        log, job = self.log(name), self._job(name, staleness)
        before = log.stat().st_size if log.exists() else 0
        code = forks.run(job, lambda: faults.inject(disturbances, job, staleness is None))
        return Ending(code, log.read_bytes()[before:].decode(errors="replace").replace("\r", "\n"))

    def _job(self, name: str, staleness: int | None) -> Job:
        file = self.folder / f"settings-{staleness}-{self._seeds.get(staleness, 0)}.yaml"
        if not file.exists():
            file.write_text(yaml.safe_dump(to_plain(self.settings(staleness))))
        own = {"FICKLE_PERSON": "1"} if staleness is None else self._ray
        argv = ["--config", str(file), "--name", name, "--resume", "auto"]
        return Job(argv, self.log(name), {MOOD: str(self.mood(name)), **own})

    def log(self, name: str) -> Path:
        """What all programs of a run printed."""
        return self.folder / f"{name}.log"

    def mood(self, name: str) -> Path:
        """The file that tells the reward how to behave."""
        return self.folder / ("mood" if self._ray["RAY_ADDRESS"] else f"{name}.mood")

    def whole(self, staleness: int | None = None) -> dict[str, Any]:
        """The state of the undisturbed run."""
        if staleness not in self._whole:
            self._whole[staleness] = self._undisturbed(staleness)
        return self._whole[staleness]

    def _undisturbed(self, staleness: int | None) -> dict[str, Any]:
        """Try seeds until a run has a merge and, in one process, a rollback, too: which do depends on the CPU's rounding."""
        for seed in range(40):
            self._seeds[staleness], name = seed, f"whole-{staleness}-{seed}"
            ending = self.run(name, staleness=staleness)
            assert ending.code == 0, ending.said
            state = final_state(self.runs / name)
            if state["progress"]["merges"] and (staleness is not None or state["progress"]["controller"]["rollbacks"]):
                self.undisturbed = self.runs / name
                return state
        raise AssertionError("no seed below 40 has what is wanted: loosen the rules of merging in `settings`")

    def prepare(self, parts: Iterable[str]) -> None:
        """Find out what an undisturbed run takes: bytes on disk, and operations on files whose path contains each part."""
        torch.set_num_threads(1)
        job = self._job("warm", None)
        faults.inject((), job, True)
        forks.warm_up(job)
        self.whole()
        self.size = sum(path.lstat().st_blocks * 512 for path in self.undisturbed.rglob("*"))
        counting = {part: self._start_counting(f"counted-{number}", part) for number, part in enumerate(parts)}
        for number, (part, pid) in enumerate(counting.items()):
            forks.wait(pid)
            said = self.log(f"counted-{number}").read_text()
            self.operations[part] = int(re.findall(r"^operations: (\d+)$", said, re.MULTILINE)[0])

    def _start_counting(self, name: str, part: str) -> int:
        job, fault = self._job(name, None), FileFault(part.format(name=name), 0, "count")
        return forks.start(job, lambda: faults.inject([fault], job, True))

    def differences(self, name: str, staleness: int | None = None) -> str:
        """In what a finished run differs from the undisturbed one; empty if in nothing."""
        run, whole = self.runs / name, self.whole(staleness)
        state = final_state(run)
        different = [part for part in whole if state[part] != whole[part]]
        different += [f"a leftover {path.relative_to(run)}" for path in run.rglob(f"{ASIDE}*")]
        return ", ".join(different)


def final_state(run: Path) -> dict[str, Any]:
    """All that must be equal, bit for bit."""
    return {
        "adapters": _digest(run / "checkpoints" / "latest" / "adapter" / "adapter_model.safetensors"),
        "model": _digest(run / "model" / "model.safetensors"),
        "merges": {path.parent.name: _digest(path) for path in sorted((run / "merges").glob("*/model.safetensors"))},
        "progress": json.loads((run / "checkpoints" / "latest" / "progress.json").read_text()),
        "trajectories": rows(run),
        "held-out scores": {path.name: json.loads(path.read_text()) for path in sorted((run / "heldout").glob("*.json"))},
        "curve": _curve(run, "reward/mean"),
    }


def sound(run: Path) -> bool:
    """Whether no weight of a finished run is NaN."""
    return not any(bool(value.isnan().any()) for value in load_file(run / "model" / "model.safetensors").values())


def _digest(path: Path) -> str:
    state, digest = load_file(path), hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _curve(run: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def damage_newest(run: Path, which: float, keep: float) -> int:
    """Cut a file of the newest checkpoint to a share of its length, or remove it if `keep` is negative.

    The list of sizes is not removed: a checkpoint without one counts as one of an older version, and is resumed.

    which: the file, as a share of all. Returns the number of checkpoints.
    """
    checkpoints = sorted((run / "checkpoints").glob("step_*"))
    if not checkpoints:
        return 0
    files = sorted(path for path in checkpoints[-1].rglob("*") if path.is_file() and path.stat().st_size)
    if keep < 0:
        files = [file for file in files if file.name != SIZES]
    file = files[math.floor(which * len(files))]
    if keep < 0:
        file.unlink()
    else:
        with file.open("r+b") as opened:
            opened.truncate(math.floor(keep * file.stat().st_size))
    return len(checkpoints)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
