"""One process of an SFT run, from set-up to export."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from types import NoneType
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from data.mixture import MixtureOrder
from data.overlap import warn_of_overlap
from data.shards import TripletShards
from launch.common.grids import GridRow, draw_grid
from launch.common.stop import Stop
from launch.configs.io import as_kept
from launch.configs.sft import PROGRAM, SftConfig
from launch.run.resume import check_steps
from launch.run.run_folder import ResumePoint, RunFolder
from launch.run.saving import saving
from launch.run.telemetry import PhaseTimer, Telemetry, memory
from launch.supervised.data import (
    MicroBatches,
    ResidentBatches,
    corpora,
    in_order,
    load_steps,
    loader_workers,
    make_resident,
    open_data,
    pick,
    strided,
    token_cache_file,
)
from launch.supervised.start import starting_model
from learner.parallel import rank_and_world, sum_over_ranks
from learner.supervised.step import SftLearner, SftMetrics
from learner.supervised.token_cache import TokenCache
from rollout.config import RolloutConfig
from rollout.sampler import GroupSampler
from stylevar.checkpoint import MODEL_FILE, load_into, read_model_state, save_model, save_torch
from stylevar.contracts import PolicyVersion
from stylevar.errors import UserError
from stylevar.restoring import EARLIER, restoring
from stylevar.sampling import trajectory_seed
from stylevar.text_files import read_record
from stylevar.weight_files import read_file


class ProgressBar(Protocol):
    """The interface that tqdm's bars and the progress lines of Ray workers share."""

    def update(self, n: int, /) -> object: ...

    def set_description(self, desc: str, /) -> object: ...

    def close(self) -> object: ...


def console_bar(done: int, total: int) -> ProgressBar:
    """A progress bar on the console, with `done` of `total` steps."""
    return tqdm(total=total, initial=done, desc="sft", unit="step", smoothing=0.05)


RAW_FILE, OPTIMIZER_FILE, STATE_FILE = "raw.safetensors", "optimizer.pt", "state.json"
SAMPLES = 3


def minutes_trained(checkpoint: Path) -> float:
    """Minutes that a run had spent on training steps when it wrote `checkpoint`."""
    minutes = _state_of(checkpoint).get("minutes", 0.0)  # older checkpoints lack it
    if not isinstance(minutes, (int, float)):
        raise UserError(f"{checkpoint / STATE_FILE} is damaged (minutes is {minutes!r:.40}): {EARLIER}")
    return minutes


def _state_of(checkpoint: Path) -> dict[str, Any]:
    """The run's own state in a checkpoint."""
    return read_record(checkpoint / STATE_FILE, EARLIER, step=int, best_heldout_loss=(int, float, NoneType))


class SftRun:
    """One process of a run: its data, learner, folder and reports. See `launch.run.drive.Run` for its life cycle.

    All random numbers of a step depend only on (seed, step). So a checkpoint stores no generator state, and neither
    validation nor a restart changes later steps. Only the first of several processes writes files.
    """

    def __init__(
        self,
        config: SftConfig,
        point: ResumePoint | None,
        device: torch.device,
        new_bar: Callable[[int, int], ProgressBar] = console_bar,
    ) -> None:
        """Load everything and open the run's folder. `new_bar` makes a progress bar from the done and total steps."""
        self.config, self._new_bar = config, new_bar
        self.rank, self.world = rank_and_world()
        checkpoint = None if point is None else point.checkpoint
        # A resumed run does not need the model that it started from.
        model = starting_model(replace(config, init=str(checkpoint), var=None) if checkpoint else config)
        self.data = open_data(config, model)
        if self.rank == 0:
            warn_of_overlap(self.data.train.index, {name: held_out.index for name, held_out in self.data.validation.items()})
        model.vae.to(device)
        tokens = TokenCache(model.vae) if self.data.in_memory and not config.augment.varies else None
        self.learner = SftLearner(model.to(device), config.step, tokens)
        self.steps = config.total_steps(len(self.data.train))
        if point is not None:
            check_steps(point, self.steps)
        order = MixtureOrder(corpora(self.data.train), config.mixture, config.seed, self.steps, config.batch)
        self.batches: MicroBatches | ResidentBatches
        if tokens is None:
            self.batches = MicroBatches(self.data.train, order, config.augment, config.micro_batch, self.rank, self.world)
        else:
            cache = token_cache_file(self.data.train, model.vae)
            resident = make_resident(tokens, self.data.train, config.augment, device, cache)
            self.batches = ResidentBatches(resident, order, config.micro_batch, self.rank, self.world)
        self.done, self.best = 0, math.inf  # steps, and the lowest held-out loss of a checkpoint
        self.trained = 0.0  # minutes of training steps
        self.timer = PhaseTimer(torch.cuda.synchronize if device.type == "cuda" else None)
        if checkpoint is not None:
            self._load(checkpoint)
        self.folder = self._open(point)
        with saving(self.folder, PROGRAM):
            self.telemetry = Telemetry(self.folder, self.done) if self.rank == 0 else None

    @property
    def progress(self) -> float:
        """Share of the training that is done, by steps or by minutes."""
        return max(self.done / self.steps, self.trained / self.config.minutes)

    def advance(self, stop: Stop) -> bool:
        """Train to the end (True), or until a stop is requested and a checkpoint is written (False)."""
        config, timer, device = self.config, self.timer, self.learner.model.device
        go_on = f"continue with: python launch/sft.py --resume {self.folder.path}"
        steps = load_steps(self.batches, self.done, self.steps, loader_workers(config, self.data), go_on)
        logged = self.done
        with closing(steps), closing(self._new_bar(self.done, self.steps)) as bar, stop:
            while self.progress < 1:
                started, step = time.monotonic(), self.done
                with timer("data"):
                    micro_batches = next(steps)
                lr = config.schedule.learning_rate(step, self._planned_steps(), config.step.lr)
                with timer("step"):
                    metrics = self.learner.step(micro_batches, lr, trajectory_seed(config.seed, step, "sft", 0))
                self.done = step + 1
                if not math.isfinite(metrics.loss):
                    raise UserError(
                        f"the loss of step {self.done} is {metrics.loss}: resume from the last checkpoint in "
                        f"{self.folder.checkpoints} with a lower --lr or --grad-clip"
                    )
                # All processes must agree on the time and on a stop, or they would wait for each other forever.
                seconds = time.monotonic() - started
                mine = torch.tensor([seconds, float(stop.requested)], dtype=torch.float64, device=device)
                seconds, stops = (sum_over_ranks(mine) / self.world).tolist()
                self.trained += seconds / 60
                bar.update(1)
                if self.telemetry and (self.done % config.log_every == 0 or self.progress >= 1):
                    bar.set_description(f"sft, loss {metrics.loss:.3f}")
                    self._log(self.telemetry, self.done - logged, lr, metrics)
                    logged = self.done
                self._milestones(stopping=stops > 0)
                if stops > 0:
                    break
        return self.progress >= 1

    def _planned_steps(self) -> int:
        """Steps of the whole run: all of them, or as many as fit into its minutes at the pace so far."""
        return self.steps if self.done == 0 else round(self.done / self.progress)

    def finish(self) -> Path:
        """Write the run's model folder, from its best or last checkpoint, and return it."""
        if self.rank == 0:
            self._export()
        return self.folder.model

    def close(self) -> None:
        """Flush all reports to disk."""
        if self.telemetry:
            self.telemetry.close()

    def _open(self, point: ResumePoint | None) -> RunFolder:
        """The run's folder. The first process creates or rewinds it."""
        config = self.config
        if self.rank:
            return RunFolder(Path(config.runs) / config.name if point is None else point.run, config.keep_checkpoints)
        settings = as_kept(config)
        if point is None:
            return RunFolder.create(Path(config.runs) / config.name, settings, config.keep_checkpoints)
        run = RunFolder.open(point.run, config.keep_checkpoints)
        with saving(run, PROGRAM):
            run.rewind(point.step, merges=0)
            run.resume_with(settings, point.step)
        return run

    def _milestones(self, stopping: bool) -> None:
        """Validate and write a checkpoint if they are due."""
        done = self.done
        scheduled = self.progress >= 1 or done % self.config.checkpoint_every == 0
        loss = math.inf
        if self.data.validation and (scheduled or done % self.config.eval_every == 0):
            with self.timer("eval"):
                loss = self._validate()
        if scheduled or stopping:
            better = scheduled and loss < self.best
            self.best = loss if better else self.best
            if self.telemetry:
                self.telemetry.flush()
                with self.timer("checkpoint"):
                    self._save()
                if better:
                    self.folder.mark_best(done)

    def _export(self) -> None:
        best, latest = (self.folder.linked(name) for name in ("best", "latest"))
        source = best if self.config.export == "best" and best is not None else latest
        assert source is not None
        state = read_model_state(source / MODEL_FILE)
        vae = self.config.absolute().vae
        notes = {"vae": vae, "checkpoint": source.name, **_state_of(source)}
        with self.folder.final_model(self.done, notes) as folder:
            save_model(state, self.learner.model.arch, folder, half=self.config.half)

    def _log(self, telemetry: Telemetry, steps: int, lr: float, metrics: SftMetrics) -> None:
        """Report the last step, and the times since the last report, which was `steps` steps ago."""
        times = self.timer.take()
        training = times["time/data"] + times["time/step"]
        values = {"loss/train": metrics.loss, "accuracy/train": metrics.accuracy, "grad/norm": metrics.grad_norm, "lr": lr}
        values["throughput/images_per_s"] = self.config.batch * steps / training
        values["data/wait_share"] = times["time/data"] / training
        values |= memory(self.learner.model.device)
        telemetry.scalars(self.done, {**values, **times})

    def _validate(self) -> float:
        """Loss over all held-out tokens. Also reports every split, with a picture of samples from fixed seeds."""
        config, learner = self.config, self.learner
        totals = []
        for split, triplets in self.data.validation.items():
            batches = in_order(triplets, config.micro_batch, config.val_samples, self.rank, self.world)
            sums = reduce(add, map(learner.validate, batches), self.learner.no_validation()).over_ranks()
            totals.append(sums)
            if not self.telemetry:
                continue
            self.telemetry.scalars(self.done, sums.scalars(split, config.step.topk))
            self.telemetry.image_grid(self.done, f"samples/{split}", self._samples(triplets))
            tqdm.write(
                f"step {self.done}: {split} loss {sums.loss:.4f}, top-1 {sums.top1:.4f}, "
                f"top-{config.step.topk} {sums.topk:.4f}"
            )
        return reduce(add, totals).loss

    def _samples(self, triplets: TripletShards) -> Tensor:
        """A grid of some triplets of a split and the model's samples for them, uint8 [3, H, W]."""
        shown = pick(triplets, strided(len(triplets), self.config.image_conditions))
        sampler = GroupSampler(self.learner.best_model, RolloutConfig(group=SAMPLES))
        drawn = sampler.sample(shown, self.config.seed, 0, PolicyVersion(0, 0)).images.cpu()
        assert shown.target is not None
        return draw_grid([GridRow(*images) for images in zip(shown.content, shown.style, shown.target, drawn, strict=True)])

    def _save(self) -> None:
        learner, arch = self.learner, self.learner.model.arch
        with self.folder.checkpoint(self.done) as folder:
            save_model(learner.best_model.state_dict(), arch, folder)
            if learner.average is not None:
                raw = {k: v.cpu().contiguous() for k, v in learner.model.state_dict().items()}
                save_file(raw, str(folder / RAW_FILE))
            save_torch(learner.state(), folder / OPTIMIZER_FILE)
            best = None if math.isinf(self.best) else self.best
            state = {"step": self.done, "minutes": self.trained, "best_heldout_loss": best, "seed": self.config.seed}
            (folder / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")

    def _load(self, folder: Path) -> None:
        """Inverse of `_save`, except for the model, which is already loaded."""
        learner, raw = self.learner, folder / RAW_FILE
        if raw.is_file() != (learner.average is not None):
            has, given = ("an average", 0) if raw.is_file() else ("no average", self.config.step.ema)
            raise UserError(f"--ema {given:g}: {folder} has {has} of the weights; resume with the run's own --ema")
        if learner.average is not None:
            load_into(learner.model, read_model_state(raw), str(raw))
        optimizer = read_file(folder / OPTIMIZER_FILE, learner.model.device)
        with restoring(folder):
            learner.load_state(optimizer)
        state = _state_of(folder)
        self.done, self.best = state["step"], state["best_heldout_loss"] or math.inf
        self.trained = minutes_trained(folder)
