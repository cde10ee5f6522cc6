"""Latency and throughput of inference: `python launch/bench.py infer`, on random weights and images."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from launch.benchmarks.compare import check, naive_flops
from launch.benchmarks.model import build_model, random_conditions
from launch.benchmarks.naive import NaiveModel
from launch.benchmarks.step import Effort, use_threads
from launch.common.cpus import Threads
from launch.common.device import choose_device
from launch.common.text import duration, operations, share, table
from launch.configs.shape import ModelShape
from launch.run.telemetry import memory
from launch.sizing.flops import count_flops
from launch.sizing.peak import product_peak
from launch.sizing.phases import Workload
from learner.grpo.config import LearnerConfig
from reward.config import RewardConfig
from rollout.config import RolloutConfig
from stylevar.bounds import check_bounds
from stylevar.config import Precision
from stylevar.errors import UserError
from stylevar.images import u8_to_pm1
from stylevar.policy import allow_tf32
from stylevar.released import ReleasedStyleVAR
from stylevar.sampling import SharedStream
from stylevar.sampling_config import TopK, TopP
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


@dataclass(frozen=True)
class Infer:
    """Stylising pairs, from images to images: time, FLOPs, share of the peak of matrix products, and memory."""

    model: ModelShape = field(default_factory=ModelShape)
    effort: Effort = field(default_factory=Effort)
    batch_sizes: tuple[Annotated[int, Ge(1)], ...] = (1, 4, 8)
    """Pairs at once."""
    top_k: TopK = 900
    """Only the best K tokens may be drawn; 0 for all."""
    top_p: TopP = 0.96
    """Only the smallest set of tokens that holds this share may be drawn; 0 for all."""
    precision: Precision = "fp32"
    """bf16: blocks multiply and attend in bfloat16, and a GPU decodes in it."""
    tf32: bool = False
    """Let a GPU round the inputs of fp32 products and convolutions to TF32."""
    compile: bool = False
    """Compile the model first, as `infer.py --compile` does."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; auto uses a GPU if there is one."""
    threads: Threads = 0
    """CPU threads; 0 for all cores."""
    json: bool = False
    """Print one JSON object instead of a table."""
    compare_naive: bool = False
    """Also run a plain implementation of the model, check that the tokens agree, and show what is saved."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.compare_naive and (self.precision == "bf16" or self.tf32):
            raise UserError("--compare-naive checks for equal tokens: leave out --precision bf16 and --tf32")
        if not self.batch_sizes:
            raise UserError("--batch-sizes names nothing: give one or more")

    def run(self) -> None:
        result = self.measure()
        print(json.dumps(asdict(result)) if self.json else result.text())

    def measure(self) -> InferResult:
        """Build the model and time every batch size, smallest first."""
        use_threads(self.threads)
        device = choose_device(self.device)
        model = build_model(self.model)
        model.vae.to(device)
        model.to(device)
        allow_tf32(self.tf32)
        if self.precision == "bf16":
            model.hold_in(torch.bfloat16)
        if self.compile:
            model.compile_blocks()
        settings = RolloutConfig(top_k=self.top_k, top_p=self.top_p)
        work = Workload(model.arch, LearnerConfig(lora_rank=1), settings, RewardConfig())
        peak = product_peak(device, torch.bfloat16 if self.precision == "bf16" else torch.float32)
        batches = tuple(self._batch(model, work, size, peak) for size in sorted(self.batch_sizes))
        return InferResult(str(device), torch.get_num_threads(), peak, batches)

    def _batch(self, model: ReleasedStyleVAR, work: Workload, size: int, peak: float) -> BatchResult:
        pairs = random_conditions(size, model.arch.image_size, seed=size).to(model.device)
        style, content = u8_to_pm1(pairs.style), u8_to_pm1(pairs.content)

        def ours() -> Tensor:
            _, tokens = model.autoregressive_infer(
                size, style, content, g_seed=0, top_k=self.top_k, top_p=self.top_p, return_tokens=True
            )
            return torch.cat(tokens, dim=1)

        tokens, seconds, cpu = self._timed(ours, model.device)
        counted = count_flops(work)
        flops = float(size * (counted.encode + counted.queries + counted.rollout + counted.decode))
        used = memory(model.device)
        naive = self._naive(model, work, style, content, tokens) if self.compare_naive else None
        rate = flops / seconds / peak
        peaks = used["memory/rss_peak_gib"], used.get("memory/cuda_peak_gib")
        return BatchResult(size, seconds, size / seconds, flops, rate, cpu, *peaks, naive)

    def _naive(self, model: StyleVAR, work: Workload, style: Tensor, content: Tensor, tokens: Tensor) -> NaiveResult:
        plain = NaiveModel(model)

        @torch.no_grad()
        def naive() -> Tensor:
            sampled = plain.sample(plain.read(style, content), SharedStream(0, model.device), work.rollout)
            model.vae.fhat_to_img(sampled.f_hat)
            return sampled.tokens

        drawn, seconds, _ = self._timed(naive, model.device)
        counted = naive_flops(work)
        equal = float((drawn == tokens).float().mean())
        check(equal, 0.0, model.device)
        return NaiveResult(seconds, float(len(style) * sum(counted[p] for p in ("condition", "rollout", "decode"))), equal)

    def _timed(self, work: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float, float]:
        """What `work` returns, its median seconds, and CPU time over wall time."""
        passed, cpu = [], 0.0
        for number in range(self.effort.warmup + self.effort.repeat):
            start_cpu, start = time.process_time(), time.perf_counter()
            result = work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= self.effort.warmup:
                passed.append(time.perf_counter() - start)
                cpu += time.process_time() - start_cpu
        return result, statistics.median(passed), cpu / sum(passed)
