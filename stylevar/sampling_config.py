"""Sampling settings of rollouts, evaluation, the pipeline and `autoregressive_infer`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Gt, Le

from stylevar.bounds import check_bounds
from stylevar.errors import BadSetting

KvCache = Literal["exact", "paper"]
Temperature = Annotated[float, Gt(0)]
TopK = Annotated[int, Ge(0)]
TopP = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn; the defaults are the published values. Raises BadSetting for values out of bounds."""

    temperature: Temperature = 1.0
    """The policy is softmax(logits / temperature)."""
    top_k: TopK = 900
    """Sample only from the K most likely tokens; 0 for all."""
    top_p: TopP = 0.96
    """Sample only from the smallest set of tokens with this probability; 0 for all."""
    kv_cache: KvCache = "exact"
    """exact samples from the policy that is trained; paper reproduces the cache of the released code."""

    def __post_init__(self) -> None:
        check_bounds(self, BadSetting)
        if self.kv_cache not in get_args(KvCache):
            raise BadSetting("kv_cache", self.kv_cache, f"must be {' or '.join(get_args(KvCache))}")


@dataclass(frozen=True, kw_only=True)
class SamplingChoice:
    """Sampling settings for a trained model. None takes the value in the model's config.json. Raises BadSetting as above."""

    style_strength: Annotated[float, Ge(-1), Le(1)] = 0.0
    """From -1 (more content) to 1 (more style); works best with a model trained with --alpha-jitter."""
    top_k: TopK | None = None
    """Sample only from the K most likely tokens; 0 for all. By default the value in the model's config.json, else 900."""
    top_p: TopP | None = None
    """Sample only from the smallest set of tokens with this probability; 0 for all. By default the model's, else 0.96."""
    temperature: Temperature | None = None
    """Higher values give more varied, lower ones safer results. By default the model's, else 1."""
    kv_cache: KvCache | None = None
    """exact, or paper to sample like the released code. By default the model's, else exact."""

    def __post_init__(self) -> None:
        check_bounds(self, BadSetting)
        self.over(SamplingConfig())

    def over(self, own: SamplingConfig) -> SamplingConfig:
        """These settings on top of a model's own."""
        chosen = {field.name: getattr(self, field.name) for field in fields(SamplingConfig)}
        return replace(own, **{name: value for name, value in chosen.items() if value is not None})


@dataclass(frozen=True)
class Sampling(SamplingChoice):
    """How results are sampled."""

    num_samples: Annotated[int, Ge(1)] = 1
    """Results per pair."""
    seed: int = 0
    """Random seed. A result depends on the seed, its pair's name and its number, not on other pairs."""


def conditions_at_once(samples: int, conditions: int, group: int) -> int:
    """How many conditions to draw together if at most `samples` samples may be (0 for no limit); at least one."""
    return max(1, samples // group if samples else conditions)
