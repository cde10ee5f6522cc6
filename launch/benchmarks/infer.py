"""Latency and throughput of inference: `python launch/bench.py infer`, on random weights and images."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from launch.benchmarks.compare import check, naive_flops
from launch.benchmarks.config import Infer
from launch.benchmarks.model import build_model, random_conditions
from launch.benchmarks.naive import NaiveModel
from launch.benchmarks.step import use_threads
from launch.common.device import choose_device
from launch.common.text import duration, operations, share, table
from launch.run.telemetry import memory
from launch.sizing.flops import count_flops
from launch.sizing.peak import product_peak
from launch.sizing.phases import Workload
from learner.grpo.config import LearnerConfig
from reward.config import RewardConfig
from rollout.config import RolloutConfig
from stylevar.images import u8_to_pm1
from stylevar.released import ReleasedStyleVAR
from stylevar.sampling import SharedStream
from stylevar.tf32 import allow_tf32
from stylevar.transformer import StyleVAR


@dataclass(frozen=True)
class NaiveResult:
    """The naive model on the same pairs and seed: seconds, FLOPs, and the share of tokens that both sampled alike."""

    seconds: float
    flops: float
    tokens_equal: float


@dataclass(frozen=True)
class BatchResult:
    """One batch size. `rss_peak_gib` and `cuda_peak_gib` are the peaks of the process so far."""

    batch_size: int
    seconds: float
    images_per_s: float
    flops: float
    share_of_peak: float
    cpu_over_wall: float
    rss_peak_gib: float
    cuda_peak_gib: float | None
    naive: NaiveResult | None

    def row(self) -> tuple[str, ...]:
        rate = f"{self.flops / self.seconds / 1e9:.1f}"
        cells = [str(self.batch_size), duration(self.seconds), f"{self.images_per_s:.3g}", operations(self.flops), rate]
        cells += [share(self.share_of_peak), f"{self.cpu_over_wall:.2f}", f"{self.rss_peak_gib:.2f} GiB"]
        if self.naive is not None:
            naive = self.naive
            cells += [duration(naive.seconds), f"{naive.seconds / self.seconds:.2f}"]
            cells += [operations(naive.flops), f"{naive.flops / self.flops:.2f}", f"{naive.tokens_equal:.2%}"]
        return tuple(cells)


@dataclass(frozen=True)
class InferResult:
    """What `--json` prints."""

    device: str
    threads: int
    peak_flops_per_s: float
    batches: tuple[BatchResult, ...]

    def text(self) -> str:
        """A table for reading."""
        header = ["images", "time", "images/s", "FLOPs", "GFLOP/s", "of peak", "CPU/wall", "peak memory"]
        if self.batches[0].naive is not None:
            header += ["naive", "ratio", "naive FLOPs", "ratio", "tokens alike"]
        peak = f"peak of matrix products {self.peak_flops_per_s / 1e9:.1f} GFLOP/s on {self.device}, {self.threads} threads"
        return f"{table(header, [batch.row() for batch in self.batches], 0)}\n{peak}"


def run(bench: Infer) -> None:
    """Measure every batch size and print the result."""
    result = measure(bench)
    print(json.dumps(asdict(result)) if bench.json else result.text())


def measure(bench: Infer) -> InferResult:
    """Build the model and time every batch size, smallest first."""
    use_threads(bench.threads)
    device = choose_device(bench.device)
    model = build_model(bench.model, device)
    model.vae.to(device)
    model.to(device)
    allow_tf32(bench.tf32)
    if bench.precision == "bf16":
        model.hold_in(torch.bfloat16)
    if bench.compile:
        model.compile_blocks()
    settings = RolloutConfig(top_k=bench.top_k, top_p=bench.top_p)
    work = Workload(model.arch, LearnerConfig(lora_rank=1), settings, RewardConfig())
    peak = product_peak(device, torch.bfloat16 if bench.precision == "bf16" else torch.float32)
    batches = tuple(_batch(bench, model, work, size, peak) for size in sorted(bench.batch_sizes))
    return InferResult(str(device), torch.get_num_threads(), peak, batches)


def _batch(bench: Infer, model: ReleasedStyleVAR, work: Workload, size: int, peak: float) -> BatchResult:
    pairs = random_conditions(size, model.arch.image_size, seed=size).to(model.device)
    style, content = u8_to_pm1(pairs.style), u8_to_pm1(pairs.content)

    def ours() -> Tensor:
        _, tokens = model.autoregressive_infer(
            size, style, content, g_seed=0, top_k=bench.top_k, top_p=bench.top_p, return_tokens=True
        )
        return torch.cat(tokens, dim=1)

    tokens, seconds, cpu = _timed(bench, ours, model.device)
    counted = count_flops(work)
    flops = float(size * (counted.encode + counted.queries + counted.rollout + counted.decode))
    used = memory(model.device)
    naive = _naive(bench, model, work, style, content, tokens) if bench.compare_naive else None
    rate = flops / seconds / peak
    peaks = used["memory/rss_peak_gib"], used.get("memory/cuda_peak_gib")
    return BatchResult(size, seconds, size / seconds, flops, rate, cpu, *peaks, naive)


def _naive(bench: Infer, model: StyleVAR, work: Workload, style: Tensor, content: Tensor, tokens: Tensor) -> NaiveResult:
    plain = NaiveModel(model)

    @torch.no_grad()
    def naive() -> Tensor:
        sampled = plain.sample(plain.read(style, content), SharedStream(0, model.device), work.rollout)
        model.vae.fhat_to_img(sampled.f_hat)
        return sampled.tokens

    drawn, seconds, _ = _timed(bench, naive, model.device)
    counted = naive_flops(work)
    equal = float((drawn == tokens).float().mean())
    check(equal, 0.0, model.device)
    return NaiveResult(seconds, float(len(style) * sum(counted[p] for p in ("condition", "rollout", "decode"))), equal)


def _timed(bench: Infer, work: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float, float]:
    """What `work` returns, its median seconds, and CPU time over wall time."""
    passed, cpu = [], 0.0
    for number in range(bench.effort.warmup + bench.effort.repeat):
        start_cpu, start = time.process_time(), time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= bench.effort.warmup:
            passed.append(time.perf_counter() - start)
            cpu += time.process_time() - start_cpu
    return result, statistics.median(passed), cpu / sum(passed)
