"""Train an AdaIN decoder, from the settings to the saved file."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from launch.common.cpus import available_cpus
from launch.common.device import choose_device, set_threads
from launch.common.grids import draw_table
from launch.common.stop import StopRequest
from launch.configs.io import to_plain
from launch.evaluation.baselines.adain import AdaIN
from launch.evaluation.baselines.adain_loss import AdaINLoss, adain_loss
from launch.evaluation.baselines.config import TrainAdainConfig
from launch.evaluation.baselines.decoder import build_decoder, load_decoder, save_decoder
from launch.evaluation.baselines.encoders import STRIDE, Encoder, LiteEncoder
from launch.evaluation.baselines.pairs import PairBatch, PairBatches, open_heldout, open_train
from launch.evaluation.baselines.vgg_file import load_vgg
from launch.run.event_file import EventFile
from launch.supervised.data import load_steps, strided
from stylevar.allocator import keep_freed_memory
from stylevar.atomic import file_aside
from stylevar.errors import UserError
from stylevar.images import to_device, u8_to_01
from stylevar.yaml_files import write_yaml

DECODER_FILE = "decoder.safetensors"
SHOWN = 6
"""Contents and styles in the picture grid."""


class AdainRun:
    """One training run: the encoder, the decoder, its moving average and the output folder."""

    def __init__(self, config: TrainAdainConfig) -> None:
        self.config, self.device = config, choose_device(config.device)
        if (config.out / DECODER_FILE).exists():
            raise UserError(f"{config.out / DECODER_FILE} exists: choose another --out; --init continues from a decoder")
        self.encoder: Encoder = LiteEncoder() if config.vgg is None else load_vgg(config.vgg)
        torch.manual_seed(config.seed)
        if config.init is None:
            self.decoder = build_decoder(self.encoder.kind)
        else:
            self.decoder = load_decoder(config.init, self.encoder).requires_grad_(True)
        self.triplets, in_memory = open_train(config.shards, config.memory_gb)
        size = self.triplets.image_size
        assert size is not None
        if size % STRIDE or size < 2 * STRIDE:
            raise UserError(
                f"the pictures of {config.shards[0]} are {size} px: AdaIN needs a multiple of 8, and at least 16"
            )
        self.heldout = self._heldout(size)
        self.encoder.to(self.device)
        self.decoder.to(self.device)
        self.average = build_decoder(self.encoder.kind).to(self.device).requires_grad_(False)
        self.average.load_state_dict(self.decoder.state_dict())
        self.done = 0
        self.optimizer = torch.optim.Adam(self.decoder.parameters(), lr=config.lr, betas=(0.9, 0.99))
        workers = 0 if in_memory else max(1, min(8, available_cpus() - 1))
        self.workers = workers if config.loader_workers is None else config.loader_workers

    def train(self, stopping: StopRequest) -> int:
        """Train and write the decoder. Returns the number of completed steps, fewer than all if training was stopped."""
        config = self.config
        self._make_folder()
        pairs = PairBatches(self.triplets, config.augment, config.batch, config.seed)
        events = EventFile(config.out / "tensorboard")
        with tqdm(total=config.steps, desc="adain", unit="step", smoothing=0.05) as bar:
            for step, (batch,) in enumerate(load_steps(pairs, 0, config.steps, self.workers)):
                lr = config.schedule.learning_rate(step, config.steps, config.lr)
                loss = self.step(batch, lr)
                self.done = done = step + 1
                bar.update(1)
                if done % config.log_every == 0:
                    self._log(events, done, loss, lr)
                    bar.set_postfix(content=f"{loss.content:.3f}", style=f"{loss.style:.3f}")
                if done % config.save_every == 0 or done == config.steps or stopping.requested:
                    self._save(events, done)
                if stopping.requested:
                    break
        events.close()
        return self.done

    def step(self, batch: PairBatch, lr: float) -> AdaINLoss:
        """One optimizer step. Raises UserError if the loss is not finite; files saved before are kept."""
        content, style = (u8_to_01(to_device(images, self.device)) for images in (batch.content, batch.style))
        loss = adain_loss(self.encoder, self.decoder, content, style, self.config.style_weight, self.config.identity_weight)
        if not math.isfinite(value := loss.total.item()):
            raise UserError(f"the loss is {value}: start again with a lower --lr than {self.config.lr}")
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        loss.total.backward()
        nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.config.ema, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.decoder.parameters()), 1 - decay)
        return loss

    @torch.no_grad()
    def validate(self) -> AdaINLoss:
        """The losses of the averaged decoder on the held-out pairs."""
        content, style = (u8_to_01(images.to(self.device)) for images in (self.heldout.content, self.heldout.style))
        return adain_loss(self.encoder, self.average, content, style, self.config.style_weight, self.config.identity_weight)

    def _heldout(self, size: int) -> PairBatch:
        """Contents and styles spread over the held-out set. Each content gets a style from half the set away."""
        heldout = self.triplets
        if self.config.heldout:
            heldout = open_heldout(self.config.heldout, size)
        conditions = [heldout.usable(row) for row in strided(len(heldout), 32)]
        styles = torch.stack([c.style for c in conditions]).roll(len(conditions) // 2, 0)
        return PairBatch(torch.stack([c.content for c in conditions]), styles)

    def _make_folder(self) -> None:
        out = self.config.out
        try:
            (out / "tensorboard").mkdir(parents=True, exist_ok=True)
            write_yaml(out / "config.yaml", to_plain(self.config))
        except OSError as error:
            raise UserError(f"--out {out} cannot be written ({error.strerror}): choose another place") from error

    def _log(self, events: EventFile, done: int, loss: AdaINLoss, lr: float) -> None:
        losses = {f"loss/{name}": getattr(loss, name).item() for name in ("content", "style", "identity", "total")}
        events.scalars(done, {**losses, "lr": lr})

    def _save(self, events: EventFile, done: int) -> None:
        config, heldout = self.config, self.validate()
        names = ("content", "style", "identity")
        events.scalars(done, {f"heldout/{name}": getattr(heldout, name).item() for name in names})
        tqdm.write(f"step {done}: held-out content loss {heldout.content:.4f}, style loss {heldout.style:.4f}")
        weights = {"style_weight": config.style_weight, "identity_weight": config.identity_weight}
        notes = {"steps": done, "alpha": 1.0, **weights, "shards": " ".join(config.shards)}
        save_decoder(self.average, config.out / DECODER_FILE, self.encoder, notes)
        grid = self.pictures()
        events.image(done, "samples", grid)
        with file_aside(config.out / "samples.png") as aside:
            Image.fromarray(grid.permute(1, 2, 0).numpy()).save(aside, format="PNG")

    def pictures(self) -> Tensor:
        """A table of held-out contents against styles, uint8 [3, H, W]. The second column shows each content rebuilt."""
        shown = strided(len(self.heldout.content), SHOWN)
        contents, styles = self.heldout.content[shown], self.heldout.style[shown]
        full = AdaIN(self.encoder, self.average, device=self.device)
        plain = AdaIN(self.encoder, self.average, 0.0, self.device)
        blank = torch.full_like(styles[0], 255)
        rows = [[blank, blank, *styles]]
        for content in contents:
            repeated = content.expand_as(styles)
            keys = ("",) * len(styles)
            stylised = full.samples(repeated, styles, keys, 1, 0)[:, 0]
            rows.append([content, plain.samples(repeated[:1], styles[:1], keys[:1], 1, 0)[0, 0], *stylised])
        return draw_table(rows, ["content", "rebuilt", *(f"style {i + 1}" for i in range(len(styles)))])


def train(config: TrainAdainConfig) -> tuple[Path, bool]:
    """Train a decoder. Returns its file, and whether all steps were done."""
    keep_freed_memory()
    set_threads(config.threads)
    run = AdainRun(config)
    with StopRequest() as stopping:
        done = run.train(stopping)
    return config.out / DECODER_FILE, done == config.steps
