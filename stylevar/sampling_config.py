"""How a model is sampled: the settings of rollouts, evaluation, the pipeline and `autoregressive_infer`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from stylevar.errors import BadSetting

KvCache = Literal["exact", "paper"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn; by default as published. Raises BadSetting for what is out of bounds."""

    temperature: float = 1.0
    """The policy is softmax(logits / temperature)."""
    top_k: int = 900
    """Only the best K tokens may be drawn; 0 for all."""
    top_p: float = 0.96
    """Only the smallest set of tokens that holds this share may be drawn; 0 for all."""
    kv_cache: KvCache = "exact"
    """exact samples from the policy that the learner sees; paper reproduces the released cache."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise BadSetting("temperature", self.temperature, "must be positive")
        if self.top_k < 0:
            raise BadSetting("top_k", self.top_k, "must be at least 0")
        if not 0 <= self.top_p <= 1:
            raise BadSetting("top_p", self.top_p, "must lie in [0, 1]")
        if self.kv_cache not in get_args(KvCache):
            raise BadSetting("kv_cache", self.kv_cache, f"must be {' or '.join(get_args(KvCache))}")


@dataclass(frozen=True, kw_only=True)
class SamplingChoice:
    """How a trained model is sampled. None leaves a setting to the model's config.json. Raises BadSetting as above."""

    style_strength: float = 0.0
    """From -1 (more content) to 1 (more style); best with a model trained with --alpha-jitter."""
    top_k: int | None = None
    """Only the best K tokens may be drawn; 0 for all. By default what the model's config.json says, else 900."""
    top_p: float | None = None
    """Only the smallest set of tokens that holds this share may be drawn; 0 for all. By default the model's, else 0.96."""
    temperature: float | None = None
    """Higher for more varied, lower for safer results. By default the model's, else 1."""
    kv_cache: KvCache | None = None
    """paper reproduces how the released weights were sampled. By default the model's, else exact."""

    def __post_init__(self) -> None:
        if not -1 <= self.style_strength <= 1:
            raise BadSetting("style_strength", self.style_strength, "must lie in [-1, 1]")
        self.over(SamplingConfig())

    def over(self, own: SamplingConfig) -> SamplingConfig:
        """The settings that hold for a model whose own are `own`."""
        chosen = {field.name: getattr(self, field.name) for field in fields(SamplingConfig)}
        return replace(own, **{name: value for name, value in chosen.items() if value is not None})
