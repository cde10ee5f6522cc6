"""The training of a VQ-VAE, from the images of the shards to the weights and their measured quality."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid
from tqdm import tqdm

from data.patterns import expand_shards
from data.shards import TripletShards
from launch.common.device import choose_device
from launch.common.stop import STOPPED, StopRequest
from launch.configs.vqvae import TrainVqvaeConfig
from learner.supervised.vqvae import TokenizerLearner, mirrored
from reward.lite import LiteFeatures
from stylevar.allocator import keep_freed_memory
from stylevar.atomic import file_aside
from stylevar.checkpoint import load_matching, read_vae_state, save_vae
from stylevar.contracts import ConditionBatch
from stylevar.errors import UserError
from stylevar.images import pm1_to_u8, u8_to_pm1
from stylevar.restoring import restoring
from stylevar.sampling import trajectory_seed
from stylevar.vqvae import VQVAE
from stylevar.weight_files import read_file

WEIGHTS, STATE = "vqvae.safetensors", "state.pt"


def load_images(patterns: Sequence[str], size: int) -> tuple[Tensor, Tensor]:
    """Content and target images of the shards, uint8 [N, 3, H, W] each."""
    shards = TripletShards(expand_shards(patterns), image_size=size)
    rows = [shards[i] for i in tqdm(range(len(shards)), desc="decoding", leave=False)]
    every = ConditionBatch.stack(rows)
    assert every.target is not None
    return every.content, every.target


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
    """Save rows of originals and reconstructions, photographs above stylised pictures, at twice their size."""
    rows = []
    with torch.no_grad():
        for images in (content[:10], target[:10]):
            rows += [images, pm1_to_u8(vae.idxBl_to_img(vae.img_to_idxBl(u8_to_pm1(images))))]
    grid = F.interpolate(make_grid(torch.cat(rows), nrow=10)[None].float(), scale_factor=2)[0]
    with file_aside(path) as aside:
        Image.fromarray(grid.byte().permute(1, 2, 0).cpu().numpy()).save(aside, format="PNG")


class TokenizerRun:
    """Trains a VQ-VAE from the start, or from the last saved state. The random draws of a step depend on (seed, step)."""

    def __init__(self, config: TrainVqvaeConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        arch = config.shape.model_config()
        self.images = torch.cat(load_images(config.shards, arch.image_size)).to(device)
        content, target = load_images(config.heldout, arch.image_size)
        self.heldout = {"photographs": content.to(device), "stylised": target.to(device)}
        vae = VQVAE(arch)
        if config.init is not None:
            anew = load_matching(vae, read_vae_state(config.init))
            print(f"starting from {config.init}; newly initialised: {', '.join(anew) or 'nothing'}")
        self.learner = TokenizerLearner(vae.to(device), config.step, LiteFeatures().to(device))
        self.done, self.seconds, self.history = 0, 0.0, list[dict[str, float]]()
        if config.resume:
            self._load()
        elif config.init is None:
            self.learner.revival.revive(vae, u8_to_pm1(self._batch(0)))
        config.out.mkdir(parents=True, exist_ok=True)

    @property
    def progress(self) -> float:
        """Share of the training that is done, by steps or by minutes."""
        return max(self.done / self.config.steps, self.seconds / 60 / self.config.minutes)

    def loop(self, stop: StopRequest) -> bool:
        """Train to the end (True), or until a signal requests a stop (False). Saves the state in either case."""
        config, learner = self.config, self.learner
        with tqdm(total=config.steps, initial=self.done, desc="vqvae") as bar:
            while self.progress < 1 and not stop.requested:
                started = time.monotonic()
                batch = self._batch(self.done)
                rate = min(1.0, (self.done + 1) / max(1, config.warmup)) * 0.5 * (1 + math.cos(math.pi * self.progress))
                loss = learner.step(batch, config.step.lr * rate)
                self.done += 1
                if self.done % config.revive_every == 0:
                    used = learner.revival.used_share
                    bar.set_postfix(
                        l1=f"{loss.pixels:.4f}", feat=f"{loss.perceptual:.3f}", vq=f"{loss.codebook:.4f}", used=used
                    )
                    if self.progress < 2 / 3:
                        learner.revival.revive(learner.vae, u8_to_pm1(batch))
                self.seconds += time.monotonic() - started
                bar.update()
                if self.done % config.eval_every == 0:
                    self.save()
        self.save()
        return self.progress >= 1

    def save(self) -> None:
        """Measure the averaged weights on the held-out images; write weights, picture, metrics, and state."""
        out, average = self.config.out, self.learner.average
        quality = {f"psnr_{name}_db": round(psnr(average, images), 3) for name, images in self.heldout.items()}
        if not self.history or self.history[-1]["steps"] != self.done:
            self.history.append({"steps": self.done, "images": self.done * self.config.batch, **quality})
        tqdm.write(f"step {self.done}: " + ", ".join(f"{name} {value:.2f}" for name, value in quality.items()))
        metrics = {**quality, "steps": self.done, "minutes": round(self.seconds / 60, 2), "history": self.history}
        with file_aside(out / WEIGHTS) as aside:
            save_vae(average, aside, self.config.half)
        with file_aside(out / "metrics.json") as aside:
            aside.write_text(json.dumps(metrics, indent=1) + "\n")
        state = {**self.learner.state(), "done": self.done, "seconds": self.seconds, "history": self.history}
        with file_aside(out / STATE) as aside:
            torch.save(state, aside)
        save_picture(average, self.heldout["photographs"], self.heldout["stylised"], out / "reconstructions.png")

    def _load(self) -> None:
        path = self.config.out / STATE
        if not path.is_file():
            raise UserError(f"--resume: {path} does not exist; start without --resume, or name the run's --out")
        state = read_file(path, self.device)
        with restoring(path):
            self.done, self.seconds, self.history = (state.pop(name) for name in ("done", "seconds", "history"))
            try:
                self.learner.load_state(state)
            except RuntimeError as error:
                raise UserError(f"--resume: {path} holds a VQ-VAE of another shape: give that run's own flags") from error

    def _batch(self, step: int) -> Tensor:
        """Training images of a step, uint8 [B, 3, H, W]."""
        generator = torch.Generator(self.device).manual_seed(trajectory_seed(self.config.seed, step, "vqvae", 0))
        rows = torch.randint(len(self.images), (self.config.batch,), generator=generator, device=self.device)
        return mirrored(self.images[rows], generator)


def train(config: TrainVqvaeConfig) -> None:
    """Train and say where the weights are. Exits with 130 if a signal ended the training early."""
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    run = TokenizerRun(config, choose_device(config.device))
    with StopRequest() as stop:
        finished = run.loop(stop)
    if not finished:
        print(f"stopped at step {run.done}; continue with the same flags and --resume")
        sys.exit(STOPPED)
    print(f"the VQ-VAE is {config.out / WEIGHTS}: " + json.dumps(run.history[-1]))
