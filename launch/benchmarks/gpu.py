"""One command that measures what matters on a GPU: `python launch/bench.py gpu`."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.benchmarks.config import Gpu
from launch.common.checkout import ROOT
from launch.common.text import duration, table
from launch.sizing.budget import MOST_DECODED
from stylevar.atomic import file_aside
from stylevar.errors import UserError

PUBLISHED = "--depth 20 --conditions 16 --group 16 --lora-rank 256 --micro-batch 0 --rollout-batch 128"
SMALL = "--depth 2 --patch-nums 1 2 3 --ch 32 --conditions 2 --group 2 --lora-rank 4 --micro-batch 0"
MODEL, SMALL_MODEL = "--depth 20", "--depth 2 --patch-nums 1 2 3 --ch 32"
LEAST_SECONDS = 5.0
"""With less time left, no measurement is started."""


@dataclass(frozen=True)
class Measured:
    """One measurement: its name, its command, what it printed, and why that is missing, if it is."""

    name: str
    command: str
    result: Mapping[str, Any] | None = None
    problem: str | None = None

    def row(self) -> tuple[str, str, str, str]:
        """Name, time, rate and memory, for a table."""
        if self.result is None:
            return self.name, self.problem or "", "", ""
        found = self.result
        if "batches" in found:
            rates = [f"{batch['images_per_s']:.3g}" for batch in found["batches"]]
            sizes = ", ".join(str(batch["batch_size"]) for batch in found["batches"])
            first, last = found["batches"][0], found["batches"][-1]
            return self.name, duration(first["seconds"]), f"{', '.join(rates)} images/s at {sizes}", _peak(last)
        if "triplets_per_s" in found:
            return self.name, duration(found["seconds"]), f"{found['triplets_per_s']:.4g} triplets/s", _peak(found)
        step = found["step"]
        rate = f"{step['flops'] / step['seconds'] / 1e12:.3g} TFLOP/s, mismatch {found['logprob_mismatch_max']:.1e}"
        return self.name, duration(step["seconds"]), rate, _peak(found)


def plan(bench: Gpu) -> dict[str, str]:
    """The measurements by name, as words after `launch/bench.py`: the most informative first."""
    recipe, model = (SMALL, SMALL_MODEL) if bench.small else (PUBLISHED, MODEL)
    sizes, batch = ("1 2", 2) if bench.small else ("1 8 64", 128)
    recipe += " --reward none --warmup 1"
    step = f"step {recipe} --decode-batch {MOST_DECODED}"  # as a run would choose on a large GPU
    more = "--repeat 3 --precision bf16 --tf32"
    bf16 = f"{step} {more}"
    steps = {"step, bf16": bf16, "step, bf16, compiled": f"{bf16} --compile"}
    for name in steps:
        file = bench.out.absolute() / f"{name.replace(', ', '_').replace('step', 'profile')}.txt"
        steps[name] += f" --profile {shlex.quote(str(file))}"
    if bench.device != "cpu":
        steps["step, bf16, compiled, CUDA graphs"] = f"{bf16} --compile --cuda-graphs"
    return {
        **steps,
        "step, bf16, compiled, 32 images decoded at once": f"step {recipe} --decode-batch 32 {more} --compile",
        "step, TF32": f"{step} --repeat 2 --tf32",
        "step, fp32": f"{step} --repeat 1",
        "SFT, bf16": f"sft {model} --batch {batch} --precision bf16 --tf32",
        "SFT, bf16, compiled": f"sft {model} --batch {batch} --precision bf16 --tf32 --compile",
        "inference, bf16": f"infer {model} --batch-sizes {sizes} --precision bf16 --tf32",
        "inference, TF32": f"infer {model} --batch-sizes {sizes} --tf32",
        "inference, fp32": f"infer {model} --batch-sizes {sizes}",
    }


def run(bench: Gpu) -> None:
    """Measure one thing after the other, each in a process of its own, and write the results after each."""
    try:
        bench.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {bench.out} cannot be written ({error.strerror}): choose another folder") from error
    end = time.monotonic() + 60 * bench.minutes
    measured = []
    for name, words in plan(bench).items():
        measured.append(measure(name, f"{words} --device {bench.device} --json", end - time.monotonic()))
        print(": ".join(cell for cell in measured[-1].row()[:2] if cell), flush=True)
        write(measured, bench.out)
    print(f"\n{summary(measured)}\n\nall numbers: {bench.out / 'gpu.json'}")


def measure(name: str, words: str, seconds: float) -> Measured:
    """Run one measurement for at most so many seconds. What goes wrong becomes part of the result."""
    command = f"python launch/bench.py {words}"
    if seconds < LEAST_SECONDS:
        return Measured(name, command, problem="no time left")
    program = [sys.executable, str(ROOT / "launch" / "bench.py"), *shlex.split(words)]
    try:
        ended = subprocess.run(program, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Measured(name, command, problem=f"not done in {duration(seconds)}")
    if ended.returncode:
        said = (ended.stderr.strip() or ended.stdout.strip() or f"exit code {ended.returncode}").splitlines()
        return Measured(name, command, problem=said[-1])
    return Measured(name, command, json.loads(ended.stdout.strip().splitlines()[-1]))


def summary(measured: list[Measured]) -> str:
    """All measurements as a table."""
    return table(("measurement", "time", "rate", "peak memory"), [one.row() for one in measured], text_columns=4)


def write(measured: list[Measured], out: Path) -> None:
    """Write gpu.json and gpu.md."""
    with file_aside(out / "gpu.json") as aside:
        rows = [{"name": m.name, "command": m.command, "result": m.result, "problem": m.problem} for m in measured]
        aside.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    lines = ["| measurement | time | rate | peak memory |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(one.row())} |" for one in measured]
    commands = [f"{one.name}:  {one.command}" for one in measured]
    with file_aside(out / "gpu.md") as aside:
        aside.write_text("\n".join([*lines, "", "```", *commands, "```"]) + "\n", encoding="utf-8")


def _peak(found: Mapping[str, Any]) -> str:
    peak = found["rss_peak_gib"] if found["cuda_peak_gib"] is None else found["cuda_peak_gib"]
    return f"{peak:.1f} GiB"
