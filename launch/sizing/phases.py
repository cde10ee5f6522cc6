"""The phases of a step on the meta device, where tensors have shapes but no values: for counting FLOPs and bytes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from launch.sizing.trace import ShapesOnly
from learner.credit.gradient import token_slopes
from learner.grpo.config import LearnerConfig
from learner.grpo.update import GrpoLearner
from reward.base import Embedding, PerceptualDistance
from reward.build import assemble, build_term, distance_class
from reward.config import DreamSimType, RewardConfig
from reward.scorer import RewardScorer
from rollout.config import RolloutConfig
from stylevar.adapters import Adapters
from stylevar.build import build_shapes
from stylevar.conditions import ConditionState, encode_conditions, guide_queries
from stylevar.config import ModelConfig, Precision
from stylevar.contracts import PolicyVersion, References, RewardDetail, Trajectories
from stylevar.generate import Generation, generate
from stylevar.sampler import decode

META = torch.device("meta")


@dataclass(frozen=True)
class Workload:
    """The model and the settings that decide how much a run computes."""

    arch: ModelConfig
    learner: LearnerConfig
    rollout: RolloutConfig
    reward: RewardConfig
    tokens_known: bool = False
    """The shards contain VQ tokens, so conditions need no VQ encoder."""
    precision: Precision = "fp32"
    """What the blocks multiply in. The decoder counts as fp32, an upper bound: autocast does not support the meta device."""
    on_gpu: bool = False
    """The model is on a GPU, which does not share the host's memory."""


def over_depth(work: Workload, measure: Callable[[Phases], dict[str, int]]) -> dict[str, int]:
    """`measure` of the whole model, extrapolated from one and two blocks: exact, because all blocks are alike."""
    one = measure(first_blocks(work, 1))
    if work.arch.depth == 1:
        return one
    two = measure(first_blocks(work, 2))
    return {name: one[name] + (work.arch.depth - 1) * (two[name] - one[name]) for name in one}


@lru_cache(maxsize=4)
def first_blocks(work: Workload, blocks: int) -> Phases:
    """Phases of a model with only its first `blocks`, built once. It may hold gradients of an earlier measurement."""
    return Phases(work, blocks)


class Phases:
    """Each method runs one phase of a step, with the functions and shapes of a real run."""

    def __init__(self, work: Workload, blocks: int | None = None) -> None:
        """`blocks`: keep only so many transformer blocks, at full width."""
        self.work = work
        _, self.model = build_shapes(work.arch)
        if blocks is not None:
            del self.model.blocks[blocks:]
        self.adapters = Adapters(self.model, work.learner.lora_rank)
        if work.precision == "bf16":
            self.model.compute_in(torch.bfloat16)
        self.learner = GrpoLearner(self.adapters, work.learner, work.rollout.temperature)

    @torch.no_grad()
    def encode(self, conditions: int, tokens_known: bool = False) -> ConditionState:
        """Encoders, VQ tokens (unless they are known or in the shards), guide tokens and adaLN vectors."""
        arch = self.work.arch
        image = torch.empty(conditions, 3, arch.image_size, arch.image_size, device=META)
        tokens = None
        if self.work.tokens_known or tokens_known:
            tokens = [torch.empty(2 * conditions, p * p, dtype=torch.int64, device=META) for p in arch.patch_nums]
        with ShapesOnly():
            return encode_conditions(self.model, image, image, tokens)

    @torch.no_grad()
    def queries(self, state: ConditionState) -> list[Tensor]:
        return guide_queries(self.model, state)

    def sample(self, state: ConditionState, queries: Sequence[Tensor], group: int) -> Generation:
        """A rollout without its decoder."""
        settings = self.work.rollout
        keep_support = settings.logprob == "support"
        return generate(self.model, state, queries, group, FirstToken(), settings, keep_support=keep_support)

    @torch.no_grad()
    def decode(self, images: int, at_once: int = 0) -> Tensor:
        """uint8 images, decoded `at_once` at a time (0 for all)."""
        return decode(self.model.vae, self.model.vae.quantize.empty(images), at_once)

    def credit(self, images: int) -> None:
        """Gradient credit's way from the reward's gradient back through the decoder, `--credit-batch` images at a time."""
        if self.work.learner.credit != "gradient":
            return
        arch, at_once = self.work.arch, self.work.learner.credit_batch
        tokens = torch.empty(images, arch.tokens, dtype=torch.int64, device=META)
        gradient = torch.empty(images, 3, arch.image_size, arch.image_size, dtype=torch.bfloat16, device=META)
        token_slopes(self.model.vae, tokens, gradient, at_once)

    def reference(self, state: ConditionState, group: int) -> Tensor:
        """The reference pass over all conditions of `state`."""
        return self.learner.reference(state, self._trajectories(state.start.shape[0], group))

    def forward(self, state: ConditionState, group: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The update's forward pass for one condition: the queries, their leaves, and the scalar to differentiate."""
        queries = guide_queries(self.model, state)
        leaves = [q.detach().requires_grad_() for q in queries]
        trajectories = self._trajectories(1, group)
        terms = self.learner.terms_to_learn(state, leaves, trajectories.tokens, trajectories.support)
        return queries, leaves, terms.logp.sum()

    def backward_queries(self, queries: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
        """The last part of the backward pass, which the trajectories of a group share."""
        torch.autograd.backward(queries, [leaf.grad for leaf in leaves if leaf.grad is not None])

    def _trajectories(self, conditions: int, group: int) -> Trajectories:
        length, vocab = self.work.arch.tokens, self.work.arch.V
        tokens = torch.empty(conditions, group, length, dtype=torch.int16, device=META)
        per_token = torch.empty(conditions, group, length, device=META)
        support = None
        if self.work.rollout.logprob == "support":
            support = torch.empty(conditions, group, length, -(-vocab // 8), dtype=torch.uint8, device=META)
        keys = tuple(map(str, range(conditions)))
        seeds = torch.empty(conditions, group, dtype=torch.int64, device=META)
        return Trajectories(keys, tokens, per_token, per_token, tokens, seeds, PolicyVersion(0, 0), support)


class FirstToken:
    """A stream that always draws token 0: on the meta device there are no probabilities to draw from."""

    def draw(self, probs: Tensor, at: slice) -> Tensor:
        return torch.zeros(probs.shape[:-1], dtype=torch.int64, device=probs.device)


# Patch sizes of the ViT-B backbones of each DreamSim model.
_BACKBONES: dict[DreamSimType, tuple[int, ...]] = {
    "dino_vitb16": (16,),
    "dino_vitb16_patch": (16,),
    "synclr_vitb16": (16,),
    "clip_vitb32": (32,),
    "open_clip_vitb32": (32,),
    "ensemble": (16, 32, 32),
}
_DREAMSIM_SIZE = 224


class _DreamSimShapes(PerceptualDistance):
    """DreamSim without its weights, which a plan does not need: timm's ViT-B has the shapes of its backbones."""

    name = "dreamsim shapes"

    def __init__(self, dreamsim_type: DreamSimType) -> None:
        import timm  # slow to import, and only this reward needs it

        super().__init__()
        patches = _BACKBONES[dreamsim_type]
        self.nets = nn.ModuleList(timm.create_model(f"vit_base_patch{p}_224", num_classes=0) for p in patches)
        self.requires_grad_(False).eval()

    def embed(self, images_01: Tensor) -> Embedding:
        images_01 = F.interpolate(images_01, size=(_DREAMSIM_SIZE, _DREAMSIM_SIZE), mode="bicubic", antialias=True)
        return (torch.cat([net(images_01) for net in self.nets], dim=1),)

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        return {"total": 1 - torch.cosine_similarity(first[0], second[0], dim=-1)}


class _Uncounted(PerceptualDistance):
    """Stands in for a user's own class, which may not work without values. It counts as nothing, with a warning."""

    def __init__(self, spec: str) -> None:
        super().__init__()
        self.name = spec.rpartition(":")[2]
        self.to(META)
        warnings.warn(f"the plan does not count the memory and the FLOPs of --reward {spec}", stacklevel=2)

    def embed(self, images_01: Tensor) -> Embedding:
        return (images_01.mean((1, 2, 3)),)

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        return {"total": first[0] - second[0]}


def meta_scorer(config: RewardConfig) -> RewardScorer:
    """The configured scorer on the meta device; no weights are read."""
    return RewardScorer(_distance(config), config.scale, config.reward_batch)


def score(work: Workload, conditions: int, group: int) -> None:
    """Score a group of images against the references of each condition, in the detail that the credit needs."""
    detail: RewardDetail = work.learner.reward_detail
    if any(term.is_custom for term in work.reward.terms()):
        detail = "none"  # nothing is known of a user's own class
    shape = (3, work.arch.image_size, work.arch.image_size)
    images = (group, work.arch.scales) if detail == "prefixes" else (group,)
    generated = torch.empty(conditions, *images, *shape, dtype=torch.uint8, device=META)
    picture = torch.empty(conditions, *shape, dtype=torch.uint8, device=META)
    meta_scorer(work.reward).score(generated, References(picture, picture, picture), detail)


@lru_cache
def _distance(config: RewardConfig) -> PerceptualDistance:
    terms = config.terms()
    names = dict.fromkeys(term.name for term in terms)
    return assemble(terms, {name: _term_shapes(name, config) for name in names}).to(META)


def _term_shapes(name: str, config: RewardConfig) -> PerceptualDistance:
    if ":" in name:
        return _Uncounted(name)
    if name in ("lite", "lite_grey"):  # their weights are always installed
        return build_term(name, config).to(META)
    with META:
        return (_DreamSimShapes(config.dreamsim_type) if name == "dreamsim" else distance_class(name)()).eval().to(META)
