"""How well gradient credit predicts the effect of one token: `python launch/bench.py credit`.

In each sampled trajectory and at each scale, one token is replaced by another code, drawn from the policy. The change in
reward that the method predicts is compared with the actual one: with all later tokens fixed, as the method assumes, and with
the later scales drawn again with the same random numbers, as a changed policy would draw them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from data.conditions import TRAIN, ConditionSets
from launch.benchmarks.config import Credit
from launch.benchmarks.step import use_threads
from launch.common.device import choose_device
from launch.common.text import share, table
from learner.credit.gradient import GradientCredit
from learner.lesson import Lesson
from reward.scorer import RewardScorer, build_scorer
from stylevar.conditions import encode_batch, guide_queries
from stylevar.contracts import ConditionBatch, Trajectories
from stylevar.generate import Generation, generate
from stylevar.policy import Policy, PolicySource
from stylevar.sampler import decode
from stylevar.sampling import CoupledStreams, Stream, trajectory_seeds


@dataclass(frozen=True)
class Fit:
    """Actual over predicted change in reward: the slope of a line through zero, its standard error, and the correlation."""

    slope: float
    error: float
    correlation: float

    @staticmethod
    def of(predicted: Tensor, actual: Tensor) -> Fit:
        """Least squares on [N] values each, with an error that allows for unequal noise (White, 1980)."""
        square = predicted.square().sum()
        slope = (predicted * actual).sum() / square
        error = ((actual - slope * predicted) * predicted).square().sum().sqrt() / square
        both = torch.stack([predicted, actual])
        return Fit(float(slope), float(error), float(torch.corrcoef(both)[0, 1]))

    def words(self) -> tuple[str, str]:
        return f"{self.slope:.2f} ({self.error:.2f})", f"{self.correlation:.2f}"


@dataclass(frozen=True)
class ScaleResult:
    """One scale: its tokens, its share of the credit of a whole trajectory, and how well changes were predicted."""

    scale: int
    tokens: int
    share: float
    fixed: Fit
    redrawn: Fit


@dataclass(frozen=True)
class CreditResult:
    """What `--json` prints."""

    replaced: int
    scales: tuple[ScaleResult, ...]

    def text(self) -> str:
        """A table for reading."""
        header = ["scale", "tokens", "of credit", "later fixed: slope", "correlation", "later redrawn: slope", "correlation"]
        rows = [(str(s.scale), str(s.tokens), share(s.share), *s.fixed.words(), *s.redrawn.words()) for s in self.scales]
        note = f"actual against predicted change in reward, {self.replaced} replaced tokens per scale (standard error)"
        return f"{table(header, rows, 0)}\n{note}"


class Replayed:
    """A stream that replays the tokens [B, G, L] before position `until`, and draws the others from another stream."""

    def __init__(self, tokens: Tensor, until: int, stream: Stream) -> None:
        self.tokens, self.until, self.stream = tokens, until, stream

    def draw(self, probs: Tensor, at: slice) -> Tensor:
        drawn = self.stream.draw(probs, at)  # also for replayed tokens, so that the others get the random numbers they had
        return self.tokens[..., at] if at.stop <= self.until else drawn


def run(bench: Credit) -> None:
    """Measure and print the result."""
    use_threads(bench.threads)
    device = choose_device(bench.device)
    policy = Policy(PolicySource(bench.init, bench.vae, 1, bench.seed), device)
    sets = ConditionSets(
        {TRAIN: bench.shards},
        policy.image_size,
        policy.vae_fingerprint,
        bench.conditions,
        bench.seed,
        bench.reward.target_term,
    )
    scorer = build_scorer(bench.reward, device, "gradient")
    batches = [sets.of_step(step).to(device) for step in range(bench.batches)]
    result = measure(policy, scorer, batches, bench)
    print(json.dumps(asdict(result)) if bench.json else result.text())


@torch.no_grad()
def measure(policy: Policy, scorer: RewardScorer, batches: Sequence[ConditionBatch], bench: Credit) -> CreditResult:
    """Replace one token per scale in `--group` trajectories of each condition of the batches."""
    trial = Trial(policy, scorer, bench)
    for number, batch in enumerate(batches):
        trial.add(number, batch)
    return trial.result()


class Trial:
    """Collects the changes of replaced tokens, predicted and actual, over batches."""

    def __init__(self, policy: Policy, scorer: RewardScorer, bench: Credit) -> None:
        self.policy, self.model, self.scorer, self.bench = policy, policy.model, scorer, bench
        self.credit = GradientCredit(self.model.vae, "none", bench.curvature)
        self.spans = self.model.arch.scale_slices()
        self.generator = torch.Generator().manual_seed(bench.seed)
        self.rows: list[list[Tensor]] = [[] for _ in self.spans]
        """Per scale and batch, fp32 [4, N]: q . d and |d|^2, where d is the change of the code's vector and q the reward's
        slope, and the changes in reward with later tokens fixed and redrawn."""

    def add(self, number: int, batch: ConditionBatch) -> None:
        """Sample trajectories for `batch`, and replace tokens."""
        state, group = encode_batch(self.model, batch), self.bench.rollout.group
        queries, seeds = guide_queries(self.model, state), trajectory_seeds(self.bench.seed, number, batch.keys, group)

        def draw(stream: Stream) -> Generation:
            return generate(self.model, state, queries, group, stream, self.bench.rollout, keep_logits=True)

        drawn = draw(self._stream(seeds))
        assert drawn.logits is not None
        images = decode(self.model.vae, drawn.f_hat, 8).unflatten(0, tuple(seeds.shape))
        scores = self.scorer.score(images, batch.references, "gradient")
        rows = Trajectories(batch.keys, drawn.tokens, drawn.logp, drawn.kept_mass, images, seeds, self.policy.version)
        [credit] = self.credit.assign([Lesson(state, rows, drawn.logp, scores.rewards, scores.detail)])
        assert credit.codes is not None
        tokens = drawn.tokens.long()
        before = self._reward(tokens, batch)
        for s, span in enumerate(self.spans):
            at = torch.randint(span.start, span.stop, tuple(seeds.shape), generator=self.generator).to(tokens.device)
            old, new = _at(tokens, at), self._other_codes(drawn.logits, tokens, at)
            step = credit.codes.codebook[new] - credit.codes.codebook[old]
            along = (_at(credit.codes.slopes, at) * step).sum(-1)
            fixed = tokens.scatter(2, at[..., None], new[..., None])
            redrawn = draw(Replayed(fixed, span.stop, self._stream(seeds))).tokens.long()
            actual = [self._reward(some, batch) - before for some in (fixed, redrawn)]
            columns = [along, step.square().sum(-1), *actual]
            self.rows[s].append(torch.stack([column.flatten().float() for column in columns]))

    def result(self) -> CreditResult:
        """The fits of all scales."""
        curvature, fits = self.credit.curvature(), []
        for s, parts in enumerate(self.rows):
            along, length, fixed, redrawn = torch.cat(parts, dim=1)
            predicted = along - curvature[s] / 2 * length
            fits.append((predicted, Fit.of(predicted, fixed), Fit.of(predicted, redrawn)))
        tokens = [span.stop - span.start for span in self.spans]
        sizes = torch.stack([predicted.abs().mean() * count for (predicted, _, _), count in zip(fits, tokens, strict=True)])
        scales = tuple(
            ScaleResult(s + 1, count, float(part), fixed, redrawn)
            for s, (count, part, (_, fixed, redrawn)) in enumerate(zip(tokens, sizes / sizes.sum(), fits, strict=True))
        )
        return CreditResult(sum(part.shape[1] for part in self.rows[0]), scales)

    def _stream(self, seeds: Tensor) -> CoupledStreams:
        return CoupledStreams(seeds, self.model.arch.tokens, self.model.device)

    def _other_codes(self, logits: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        """Codes [B, G] drawn from the policy at the positions `at` [B, G], but not the sampled ones."""
        probs = (_at(logits, at).float() / self.bench.rollout.temperature).softmax(-1)
        probs = probs.scatter(2, _at(tokens, at)[..., None], 0.0).clamp_min(torch.finfo(torch.float32).tiny)
        return torch.multinomial(probs.flatten(0, 1).cpu(), 1, generator=self.generator).view(at.shape).to(at.device)

    def _reward(self, tokens: Tensor, batch: ConditionBatch) -> Tensor:
        """Rewards [B, G] of the images of tokens [B, G, L]."""
        quantize = self.model.vae.quantize
        f_hat = quantize.vectors_to_fhat(quantize.embedding(tokens.flatten(0, 1)))
        images = decode(self.model.vae, f_hat, 8).unflatten(0, tuple(tokens.shape[:2]))
        return self.scorer.score(images, batch.references).rewards


def _at(values: Tensor, at: Tensor) -> Tensor:
    """The entries of values [B, G, L, ...] at the positions `at` [B, G]."""
    b, g = (torch.arange(n, device=at.device) for n in at.shape)
    return values[b[:, None], g[None], at]
