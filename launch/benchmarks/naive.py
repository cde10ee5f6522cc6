"""The model as its equations read, without thought for what is computed twice: what the project's own is held against.

Each stream projects its guide and the target to queries, keys and values of which it uses a part, and is projected back by
itself; adapters are added to their weights at every call; attention sees a dense mask; nothing is shared by a group.
Images are read by the model's own encoders and VQ-VAE: what differs is the transformer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stylevar.config import HEAD_DIM
from stylevar.sampling import Stream, draw_tokens
from stylevar.sampling_config import SamplingConfig
from stylevar.transformer import StyleVAR

Cache = dict[tuple[int, int], tuple[Tensor, Tensor]]
"""Keys and values so far, [N, H, K, 64] each, by (block, stream)."""


@dataclass(frozen=True)
class Reading:
    """N pairs as the transformer gets them: cond [N, C], start [N, 1, C], style and content guides [N, L, C]."""

    cond: Tensor
    start: Tensor
    guides: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sampled:
    """tokens [N, L], their log-probs [N, L], and f_hat [N, D, h, h]."""

    tokens: Tensor
    logp: Tensor
    f_hat: Tensor


class NaiveModel:
    """Computes with the weights of `model`, and of the adapters that it has; their gradients arrive where its own do."""

    def __init__(self, model: StyleVAR, lora_scale: float = 2.0) -> None:
        self.arch, self.vae, self.blocks, self.lora_scale = model.arch, model.vae, len(model.blocks), lora_scale
        self.encoders = model.style_encoder, model.content_encoder
        self.weights: dict[str, Tensor] = model.state_dict(keep_vars=True)
        self.level = self.weights["lvl_1L"][0]
        self.alpha = torch.tensor(model.arch.alphas, device=model.device)[self.level].unsqueeze(1)  # [L, 1]
        self.adapted = True
        """Whether adapters, where there are any, are applied."""

    def read(self, style_pm1: Tensor, content_pm1: Tensor) -> Reading:
        """Images [N, 3, H, W] in [-1, 1]."""
        style, content = style_pm1, content_pm1
        cond, start = (
            self._linear("feat_emb", e(x).flatten(1)) for e, x in zip(self.encoders, (style, content), strict=True)
        )
        positions = self._positions()
        features = (self.vae.quantize.guide_features(self.vae.img_to_idxBl(x)) for x in (style, content))
        style_guide, content_guide = (self._linear("word_embed", f) + positions for f in features)
        start = start.unsqueeze(1) + self.weights["pos_start"] + positions[:, :1]
        return Reading(cond, start, (style_guide, content_guide))

    def logprobs(self, reading: Reading, tokens: Tensor) -> Tensor:
        """Log-probs [N, L] of `tokens` [N, L], teacher-forced."""
        by_scale = [tokens[:, at].long() for at in self.arch.scale_slices()]
        later = self._linear("word_embed", self.vae.quantize.teacher_input(by_scale)) + self._positions()[:, 1:]
        x = torch.cat([reading.start, later], dim=1)
        mask = torch.where(self.level.unsqueeze(1) >= self.level, 0.0, -torch.inf)
        for i in range(self.blocks):
            x = self._block(i, x, reading.guides, reading.cond, self.alpha, mask, None)
        return self._logits(x, reading.cond).log_softmax(-1).gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1)

    @torch.no_grad()
    def sample(self, reading: Reading, stream: Stream, sampling: SamplingConfig) -> Sampled:
        """One token map after the other, with a cache of keys and values for each stream."""
        quantize, cache = self.vae.quantize, Cache()
        x, f_hat, draws = reading.start, self.vae.quantize.empty(len(reading.start)), []
        for s, at in enumerate(self.arch.scale_slices()):
            style, content = (guide[:, at] for guide in reading.guides)
            for i in range(self.blocks):
                x = self._block(i, x, (style, content), reading.cond, self.alpha[at], None, cache)
            logits = self._logits(x, reading.cond).unsqueeze(1)
            draws.append(draw_tokens(logits, sampling, stream, at))
            f_hat = f_hat + quantize.embed(draws[-1].tokens.squeeze(1), s)
            if s + 1 < self.arch.scales:
                following = slice(at.stop, at.stop + self.arch.patch_nums[s + 1] ** 2)
                x = self._linear("word_embed", quantize.at_scale(f_hat, s + 1)) + self._positions()[:, following]
        tokens, logp = (torch.cat([getattr(d, name) for d in draws], dim=2).squeeze(1) for name in ("tokens", "logp"))
        return Sampled(tokens, logp, f_hat)

    def _block(
        self,
        i: int,
        x: Tensor,
        guides: tuple[Tensor, Tensor],
        cond: Tensor,
        alpha: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        at = f"blocks.{i}."
        vectors = self._linear(f"{at}ada_lin.1", F.silu(cond)).unsqueeze(1)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = vectors.chunk(6, dim=-1)
        target = _norm(x) * (1 + scale1) + shift1
        streams = []
        for number, guide in enumerate(guides):
            q, _, _ = self._qkv(f"{at}attn.", "guide", _norm(guide) * (1 + scale1) + shift1)
            _, k, v = self._qkv(f"{at}attn.", "target", target)
            q = F.normalize(q, dim=-1) * self.weights[f"{at}attn.scale_mul_1H11"].clamp_max(math.log(100)).exp()
            k = F.normalize(k, dim=-1)
            if cache is not None:
                if (i, number) in cache:
                    k, v = (torch.cat(pair, dim=2) for pair in zip(cache[i, number], (k, v), strict=True))
                cache[i, number] = k, v
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
            streams.append(self._linear(f"{at}attn.proj", mixed.transpose(1, 2).flatten(2)))
        style, content = streams
        x = x + gamma1 * (alpha * style + (1 - alpha) * content)
        hidden = F.gelu(self._linear(f"{at}ffn.fc1", _norm(x) * (1 + scale2) + shift2), approximate="tanh")
        return x + gamma2 * self._linear(f"{at}ffn.fc2", hidden)

    def _qkv(self, at: str, side: str, x: Tensor) -> list[Tensor]:
        """Queries, keys and values [N, H, T, 64] of the guide or the target; keys have no bias."""
        names = (f"{at}q_bias_{side}", f"{at}zero_k_bias_{side}", f"{at}v_bias_{side}")
        bias = torch.cat([self.weights[name] for name in names])
        all_three = F.linear(x, self._weight(f"{at}mat_qkv_{side}"), bias)
        return [part.unflatten(2, (-1, HEAD_DIM)).transpose(1, 2) for part in all_three.chunk(3, dim=-1)]

    def _logits(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self._linear("head_nm.ada_lin.1", F.silu(cond)).unsqueeze(1).chunk(2, dim=-1)
        return self._linear("head", _norm(x) * (1 + scale) + shift)

    def _positions(self) -> Tensor:
        return self.weights["lvl_embed.weight"][self.level] + self.weights["pos_1LC"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.weights.get(f"{name}.bias")
        return F.linear(x, self._weight(name), self.weights[f"{name}.base_layer.bias"] if bias is None else bias)

    def _weight(self, name: str) -> Tensor:
        plain = self.weights.get(f"{name}.weight")
        if plain is not None:
            return plain
        base, a, b = (self.weights[f"{name}.{part}.weight"] for part in ("base_layer", "lora_A.default", "lora_B.default"))
        return base + self.lora_scale * (b @ a) if self.adapted else base


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)
