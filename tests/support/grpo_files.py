"""A GRPO run of milliseconds: its files and its configuration."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import tiny
import torch

from launch.configs.grpo import GrpoConfig, MonitorConfig
from learner.grpo.config import LearnerConfig
from learner.grpo.merging import MergeConfig
from reward.config import RewardConfig
from rollout.config import RolloutConfig
from stylevar import build_vae_stylevar
from stylevar.checkpoint import save_model, save_vae


def write_inputs(folder: Path, targets: bool = True) -> Path:
    """A model, its tokenizer, and shards of five training and three held-out triplets, or pairs without `targets`."""
    (folder / "sft").mkdir()
    # Not the usual start, whose blocks and head have next to no effect: a policy with something to learn.
    torch.manual_seed(0)
    _, model = build_vae_stylevar(
        **{**tiny.ARCH, "init_adaln": 1.0, "init_adaln_gamma": 1.0, "init_head": 5.0},
    )
    save_model(model.state_dict(), model.arch, folder / "sft")
    save_vae(model.vae, folder / "sft" / "vqvae.safetensors")
    tiny.shard(folder / "train-0.tar", 5, targets=targets)
    tiny.shard(folder / "heldout-0.tar", 3, first=50, targets=targets)
    return folder


def config(inputs: Path, runs: Path, name: str = "run", **fields) -> GrpoConfig:
    """Eight steps of two conditions over five triplets: the order crosses an epoch's end, and merges happen."""
    settings = {
        "name": name,
        "runs": runs,
        "init": str(inputs / "sft"),
        "vae": str(inputs / "sft"),
        "shards": (str(inputs / "train-*.tar"),),
        "heldout": (str(inputs / "heldout-*.tar"),),
        "steps": 8,
        "conditions": 2,
        "device": "cpu",
        "threads": 1,
        "rollout": RolloutConfig(group=2, top_k=20),
        "learner": LearnerConfig(lora_rank=2, lr=1e-2),
        "reward": RewardConfig(reward="lite"),
        "merge": MergeConfig(ema_beta=0.5, baseline_steps=1, peak_min_steps=2, min_gain=0.0, patience=1),
        "monitor": MonitorConfig(eval_every=3, eval_conditions=2, eval_group=2, checkpoint_every=2, image_conditions=2),
    }
    return GrpoConfig(**{**settings, **fields})


def rows(run: Path) -> list[dict]:
    """All trajectory rows of a run."""
    return [row for part in sorted((run / "trajectories").glob("*.parquet")) for row in pq.read_table(part).to_pylist()]
