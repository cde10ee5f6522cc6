"""Images of unfinished trajectories."""

from __future__ import annotations

import torch
from torch import Tensor

from stylevar.contracts import RewardDetail, Trajectories
from stylevar.images import pm1_to_u8
from stylevar.vqvae import VQVAE


@torch.no_grad()
def images_to_score(vae: VQVAE, drawn: Trajectories, detail: RewardDetail, at_once: int = 0) -> Tensor:
    """The images to score for `detail`: those of the trajectories, uint8 [B, G, 3, H, W], or for "prefixes" the image after
    each scale, uint8 [B, G, S, 3, H, W]; the last one is the trajectory's.

    `at_once`: number of images decoded together; 0 for all of one scale.
    """
    if detail != "prefixes":
        return drawn.images
    areas = [p * p for p in vae.quantize.patch_nums]
    tokens = drawn.tokens.long().flatten(0, 1)
    early = []
    for f_hat in vae.quantize.cumulative(tokens.split(areas, dim=1))[:-1]:
        parts = [pm1_to_u8(vae.fhat_to_img(some)) for some in f_hat.split(at_once or len(f_hat))]
        early.append(torch.cat(parts).view(drawn.images.shape))
    return torch.stack([*early, drawn.images], dim=2)
