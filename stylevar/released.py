"""The two entry points of the released code, kept for compatibility."""

from __future__ import annotations

import torch
from torch import Tensor

from stylevar.conditions import encode_conditions, guide_queries, teacher_forced
from stylevar.sampler import Sampler
from stylevar.sampling import SharedStream
from stylevar.sampling_config import KvCache, SamplingConfig
from stylevar.transformer import StyleVAR


class ReleasedStyleVAR(StyleVAR):
    """The model with the methods of the released code. `stylevar.build` always builds this class."""

    def teacher_forced_logits(self, idx_list: list[Tensor], style_img: Tensor, content_img: Tensor) -> Tensor:
        """The logits of every token, given the true tokens of the earlier scales.

        Args:
            idx_list: one int64 [B, p*p] per scale.
            style_img, content_img: [B, 3, H, W] in [-1, 1].
        Returns:
            fp32 [B, L, V].
        """
        state = encode_conditions(self, style_img, content_img)
        tokens = torch.cat(idx_list, dim=1).unsqueeze(1)
        return teacher_forced(self, state, guide_queries(self, state), tokens).squeeze(1)

    @torch.no_grad()
    def autoregressive_infer(
        self,
        B: int,
        style_img: Tensor,
        content_img: Tensor,
        g_seed: int | None = None,
        top_k: int = 0,
        top_p: float = 0.0,
        style_strength: float = 0.0,
        kv_cache: KvCache = "exact",
        return_tokens: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Stylise B pairs.

        Args:
            style_img, content_img: [B, 3, H, W] in [-1, 1].
            g_seed: seed of the random stream; None draws from torch's global one.
            top_k, top_p: truncation of the distribution, 0 for none.
            style_strength: see `alphas`.
            kv_cache: "exact", or "paper" to sample like the released code.
            return_tokens: also return the token maps, one int64 [B, p*p] per scale.
        Returns:
            Images [B, 3, H, W] in [0, 1].
        Raises:
            BadSetting: top_k, top_p or kv_cache is out of bounds.
        """
        if not B == style_img.shape[0] == content_img.shape[0]:
            raise ValueError(f"B={B}, but {style_img.shape[0]} style and {content_img.shape[0]} content images")
        sampling = SamplingConfig(top_k=top_k, top_p=top_p, kv_cache=kv_cache)
        state = encode_conditions(self, style_img, content_img)
        sampler = Sampler(self, sampling, style_strength=style_strength)
        result = sampler.draw(state, guide_queries(self, state), SharedStream(g_seed, self.device), group=1)
        images = self.vae.fhat_to_img(result.f_hat).add(1).mul(0.5)
        if not return_tokens:
            return images
        return images, [result.tokens[:, 0, s].long() for s in self.arch.scale_slices()]
