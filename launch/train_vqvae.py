"""Train a small VQ-VAE on the images of triplet shards (contents and targets), and report its reconstructions.

python launch/train_vqvae.py --shards 'data/demo/train-*.tar' --heldout 'data/demo/heldout-*.tar' --out runs/vqvae
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.utils import make_grid
from tqdm import tqdm

from data.shards import TripletShards, expand_shards
from launch import cli
from launch.commands import quoted
from launch.stop import STOPPED, StopRequest
from learner.tokenizer import CodeRevival, tokenizer_loss
from reward.lite import LiteFeatures
from stylevar.allocator import keep_freed_memory
from stylevar.checkpoint import load_into, read_vae_state, save_vae
from stylevar.config import ModelConfig, default_alphas
from stylevar.images import pm1_to_u8, u8_to_pm1
from stylevar.vqvae import VQVAE


@dataclass
class TokenizerShape:
    """The part of the model config that the VQ-VAE needs."""

    patch_nums: tuple[int, ...] = (1, 2, 4, 7, 10)
    """Side of the token map of each scale."""
    V: int = 1024
    """Codebook size."""
    Cvae: int = 16
    """Channels of the latent."""
    ch: int = 32
    """Base channels."""
    ch_mult: tuple[int, ...] = (1, 1, 2, 4)
    """Channel multiplier of each level; every level after the first halves the resolution."""


@dataclass
class TrainVqvaeConfig:
    shards: str = "data/demo/train-*.tar"
    """Training shards; a glob."""
    heldout: str = "data/demo/heldout-*.tar"
    """Shards that the reconstruction is measured on; a glob."""
    out: Path = Path("runs/vqvae")
    """Folder for vqvae.safetensors, config.json, metrics.json and reconstructions.png."""
    init: Path | None = None
    """Start from this VQ-VAE of the same shape instead of from scratch."""
    shape: TokenizerShape = field(default_factory=TokenizerShape)
    steps: int = 2000
    """Optimizer steps."""
    stop_at: int | None = None
    """End after this many steps already, the learning rate falling as if all `steps` were done."""
    batch: int = 16
    """Images per step."""
    lr: float = 1e-3
    """Peak learning rate; 100 steps of warm-up, then a cosine to zero."""
    perceptual_weight: float = 0.1
    """Weight of the EfficientNet-Lite0 feature distance against L1."""
    revive_every: int = 25
    """Steps between revivals of unused codes, during the first two thirds of the training."""
    ema: float = 0.995
    """Decay of the moving average of the weights, which is what is saved."""
    seed: int = 0
    """Seed of the initial weights, the batches and the augmentation."""
    threads: int = 2
    """CPU threads."""


def load_images(pattern: str, size: int) -> tuple[Tensor, Tensor]:
    """Content and target images of the shards, uint8 [N, 3, H, W] each."""
    shards = TripletShards(expand_shards([pattern]), image_size=size)
    rows = [shards[i] for i in tqdm(range(len(shards)), desc="decoding", leave=False)]
    return torch.stack([r.content for r in rows]), torch.stack([r.target for r in rows])


@torch.no_grad()
def psnr(vae: VQVAE, images_u8: Tensor) -> float:
    """Mean over the images of the reconstruction's peak signal-to-noise ratio in dB."""
    values = []
    for part in images_u8.split(32):
        rebuilt = pm1_to_u8(vae.idxBl_to_img(vae.img_to_idxBl(u8_to_pm1(part))))
        error = (rebuilt.double() - part.double()).square().mean((1, 2, 3))
        values.append(10 * torch.log10(255**2 / error))
    return float(torch.cat(values).mean())


def save_picture(vae: VQVAE, content: Tensor, target: Tensor, path: Path) -> None:
    """Rows of originals and reconstructions, photographs above stylised pictures, enlarged twice."""
    rows = []
    with torch.no_grad():
        for images in (content[:10], target[:10]):
            rows += [images, pm1_to_u8(vae.idxBl_to_img(vae.img_to_idxBl(u8_to_pm1(images))))]
    grid = F.interpolate(make_grid(torch.cat(rows), nrow=10)[None].float(), scale_factor=2)[0]
    Image.fromarray(grid.byte().permute(1, 2, 0).numpy()).save(path)


def main(config: TrainVqvaeConfig) -> None:
    keep_freed_memory()
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    shape = config.shape
    arch = ModelConfig(
        shape.patch_nums, shape.V, shape.Cvae, shape.ch, shape.ch_mult, alphas=default_alphas(len(shape.patch_nums))
    )
    content, target = load_images(config.shards, arch.image_size)
    images = torch.cat([content, target])
    heldout_content, heldout_target = load_images(config.heldout, arch.image_size)
    config.out.mkdir(parents=True, exist_ok=True)

    vae, features, revival = VQVAE(arch), LiteFeatures(), CodeRevival(arch.V)
    if config.init is not None:
        load_into(vae, read_vae_state(config.init), str(config.init))
    average = copy.deepcopy(vae).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=1e-4)
    augment = v2.Compose(
        [v2.RandomHorizontalFlip(), v2.RandomResizedCrop(arch.image_size, scale=(0.6, 1.0), ratio=(0.9, 1.1))]
    )
    steps = min(config.steps, config.stop_at or config.steps)
    bar, started = tqdm(range(steps), desc="vqvae"), time.monotonic()
    stop, done = StopRequest(), 0
    for step in stop.until_requested(bar):
        rate = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        optimizer.param_groups[0]["lr"] = config.lr * rate
        picked = images[torch.randint(len(images), (config.batch,))]
        batch = u8_to_pm1(torch.stack([augment(image) for image in picked]))
        if step == 0 and config.init is None:
            revival.revive(vae, batch)
        loss = tokenizer_loss(vae, batch, features, config.perceptual_weight)
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(vae.parameters()), 1 - decay)
        revival.count(loss.tokens)
        done = step + 1
        if step % config.revive_every == config.revive_every - 1 and step < config.steps * 2 / 3:
            used = revival.used_share
            revival.revive(vae, batch)
            bar.set_postfix(l1=f"{loss.pixels:.3f}", feat=f"{loss.perceptual:.3f}", vq=f"{loss.codebook:.3f}", used=used)
        if step % 250 == 249:
            quality = {"photographs": psnr(average, heldout_content), "stylised": psnr(average, heldout_target)}
            tqdm.write(f"step {step + 1}: PSNR " + ", ".join(f"{k} {v:.2f} dB" for k, v in quality.items()))
            save_vae(average, config.out / "vqvae.safetensors")
            save_picture(average, heldout_content, heldout_target, config.out / "reconstructions.png")
    metrics = {
        "psnr_photographs_db": psnr(average, heldout_content),
        "psnr_stylised_db": psnr(average, heldout_target),
        "steps": done,
        "minutes": (time.monotonic() - started) / 60,
    }
    save_vae(average, config.out / "vqvae.safetensors")
    save_picture(average, heldout_content, heldout_target, config.out / "reconstructions.png")
    (config.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics))
    if done < steps:
        print(f"stopped early; go on with {quoted('--init', config.out / 'vqvae.safetensors')} and another --out")
        sys.exit(STOPPED)


if __name__ == "__main__":
    cli.run(main, TrainVqvaeConfig)
