"""Speed and memory of SFT steps: `python launch/bench.py sft`, the run's own step on random weights, images and tokens."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass, replace

import torch

from launch.benchmarks.config import Sft
from launch.benchmarks.model import build_model, random_conditions
from launch.benchmarks.step import use_threads
from launch.common.device import choose_device
from launch.common.text import duration
from launch.run.telemetry import memory
from learner.supervised.step import SftLearner
from stylevar.config import ModelConfig
from stylevar.contracts import ConditionBatch
from stylevar.tf32 import allow_tf32


@dataclass(frozen=True)
class SftResult:
    """What `--json` prints. Seconds are the median of a step, with shards that bring their VQ tokens."""

    device: str
    threads: int
    batch: int
    seconds: float
    triplets_per_s: float
    rss_peak_gib: float
    cuda_peak_gib: float | None

    def text(self) -> str:
        """A line for reading."""
        peak = f"{self.rss_peak_gib:.2f} GiB"
        peak += "" if self.cuda_peak_gib is None else f", on the GPU {self.cuda_peak_gib:.2f} GiB"
        return (
            f"{duration(self.seconds)} for a step of {self.batch} triplets, {self.triplets_per_s:.4g} triplets/s, on "
            f"{self.device} with {self.threads} threads; peak memory {peak}"
        )


def run(bench: Sft) -> None:
    """Measure the steps and print the result."""
    result = measure(bench)
    print(json.dumps(asdict(result)) if bench.json else result.text())


def measure(bench: Sft) -> SftResult:
    """Build the model, and time its steps."""
    use_threads(bench.threads)
    device = choose_device(bench.device)
    allow_tf32(bench.tf32)
    model = build_model(bench.model, device)
    model.requires_grad_(True)
    model.vae.to(device)
    model.to(device)
    learner = SftLearner(model, bench.step)
    micro = bench.micro_batch or bench.batch
    parts = [random_triplets(micro, model.arch, seed).to(device) for seed in range(bench.batch // micro)]
    taken = []
    for step in range(bench.effort.warmup + bench.effort.repeat):
        start = time.perf_counter()
        learner.step(parts, bench.step.lr, step)
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    seconds, used = statistics.median(taken[bench.effort.warmup :]), memory(device)
    peaks = used["memory/rss_peak_gib"], used.get("memory/cuda_peak_gib")
    return SftResult(str(device), torch.get_num_threads(), bench.batch, seconds, bench.batch / seconds, *peaks)


def random_triplets(count: int, arch: ModelConfig, seed: int) -> ConditionBatch:
    """Triplets of noise with random tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, arch.V, (count, 3, arch.tokens), generator=generator).to(torch.int16)
    return replace(random_conditions(count, arch.image_size, seed), tokens=tokens)
