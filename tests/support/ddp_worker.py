"""Two data-parallel processes train the tiny model, each on its share, and leave what they hold."""

from __future__ import annotations

from pathlib import Path

import small_model
import tiny
import torch
import torch.distributed as dist

from learner.supervised.config import SftStepConfig
from learner.supervised.step import SftLearner
from stylevar.contracts import ConditionBatch

CONFIG = SftStepConfig(alpha_jitter=0.2, ema=0.9)
CUTS = {1: [[slice(0, 6)]], 2: [[slice(0, 1), slice(1, 3)], [slice(3, 5), slice(5, 6)]]}


def part(batch: ConditionBatch, rows: slice) -> ConditionBatch:
    return ConditionBatch(batch.keys[rows], batch.content[rows], batch.style[rows], batch.target[rows])


def train(rank: int, world: int, folder: Path) -> None:
    """Two steps on the same six triplets, whatever `world` is; writes FOLDER/WORLD-RANK.pt."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    model = tiny.build()
    learner = SftLearner(model, CONFIG)
    batch = small_model.batch(model, 6)
    mine = [part(batch, cut) for cut in CUTS[world][rank]]
    metrics = [learner.step(mine, lr=1e-3, seed=seed) for seed in (1, 2)]
    sums = learner.validate(mine[0])
    for more in mine[1:]:
        sums = sums + learner.validate(more)
    found = {"model": model.state_dict(), "average": learner.best_model.state_dict()}
    found |= {"metrics": [(m.loss, m.accuracy, m.grad_norm) for m in metrics], "sums": sums.over_ranks().sums}
    torch.save(found, folder / f"{world}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()
