"""The policy in each process of a run: the model, its adapters, and the version of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stylevar.adapters import Adapters
from stylevar.checkpoint import MODEL_FILE, load_into, load_pair, read_model_state
from stylevar.config import Precision
from stylevar.contracts import PolicyVersion
from stylevar.fusing import fuse
from stylevar.hub import fetch
from stylevar.sampling import trajectory_seed
from stylevar.tf32 import allow_tf32
from stylevar.transformer import StyleVAR

START = PolicyVersion(0, 0)


@dataclass(frozen=True)
class PolicySource:
    """The source of a run's weights, the same for all of its processes.

    After merges, `base` is the model (a file or folder) whose weights replace those of `init`; `version` is the version of
    these weights.
    """

    init: str
    vae: str
    lora_rank: int
    seed: int
    revision: str | None = None
    alphas: tuple[float, ...] | None = None
    base: str | None = None
    version: PolicyVersion = START
    precision: Precision = "fp32"
    tf32: bool = False
    compile: bool = False


def _load(source: PolicySource) -> StyleVAR:
    _, model = load_pair(source.init, source.vae, source.alphas, source.revision)
    if source.base is not None:
        load_into(model, read_model_state(fetch(source.base, MODEL_FILE)), source.base)
    return model


class Policy:
    """One process's copy of the policy. The adapters have no effect until `load` is called."""

    def __init__(self, source: PolicySource, device: torch.device, model: StyleVAR | None = None) -> None:
        """Raises UserError if files are missing or do not fit. Sets whether the whole process uses TF32 and fuses.

        `model`, with its VQ-VAE, replaces the files of `source`.
        """
        allow_tf32(source.tf32)
        fuse(source.compile, device)
        self.model = _load(source) if model is None else model
        vae = self.model.vae
        self.vae_fingerprint = vae.fingerprint()
        vae.to(device)
        self.model.to(device)
        self.seed, self.version = source.seed, source.version
        self.adapters = Adapters(self.model, source.lora_rank, seed=self._adapter_seed())
        if source.precision == "bf16":
            self.model.compute_in(torch.bfloat16)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return self.model.arch.image_size

    def describe(self) -> dict[str, int]:
        """The numbers of parameters."""
        return {
            "model parameters": sum(p.numel() for p in self.model.parameters()),
            "trainable parameters": sum(p.numel() for p in self.adapters.parameters()),
        }

    def load(self, adapters: Mapping[str, Tensor], version: PolicyVersion) -> None:
        """Set the adapters to those of `version`."""
        if version.merges != self.version.merges:
            raise ValueError(f"adapters of {version} do not fit the base of {self.version}: replay the merges first")
        self.adapters.load(adapters)
        self.version = version

    def merge(self, snapshot: Mapping[str, Tensor]) -> None:
        """Bake `snapshot` into the base and reset the adapters, with the same arithmetic on every worker."""
        self.adapters.load(snapshot)
        self.adapters.bake()
        self.version = self.version._replace(merges=self.version.merges + 1)
        self.restart()

    def restart(self) -> None:
        """Reset to adapters without effect, identical in all processes at the same version."""
        self.adapters.reset(self._adapter_seed())

    def _adapter_seed(self) -> int:
        return trajectory_seed(self.seed, self.version.updates, "adapters", self.version.merges)
