"""The interface behind which every perceptual distance stands, and its configuration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from reward.cells import to_grid
from reward.terms import Term, parse_terms
from stylevar.bounds import check_bounds
from stylevar.contracts import Reference
from stylevar.errors import UserError


class MissingWeights(UserError):
    """The weights of a distance are not there; the message says what to put where."""


Embedding = tuple[Tensor, ...]
"""What a distance needs to remember of N images: tensors with N rows each."""

DreamSimType = Literal["dino_vitb16", "clip_vitb32", "open_clip_vitb32", "ensemble", "synclr_vitb16", "dino_vitb16_patch"]
"""The package's models that load from files alone; its DINOv2 models exist only as code behind torch.hub."""


@dataclass(frozen=True)
class RewardConfig:
    """What generated images are compared with, and how."""

    reward: str = "lite"
    """The distance: dreamsim (the published reward), lite (built in, needs no weights), lpips, lpips_alex, style, content,
    cfsd, clip, dino, ssim, psnr, edges or color; a weighted sum as dreamsim=5.0,lpips=1.0; or your own package.module:Class.
    Each compares with the target; NAME@content or NAME@style compares with an input: dreamsim@content=2,color@style=0.05."""
    dreamsim_type: DreamSimType = "dino_vitb16"
    """Which DreamSim model scores the images. Used only with --reward dreamsim."""
    dreamsim_cache: str | None = None
    """Folder that holds DreamSim's weight files, in place of `dreamsim` in --metric-weights; nothing is downloaded."""
    reward_scale: Annotated[float, Gt(0)] = 5.0
    """Lambda: the reward is -scale * distance. In a sum it is the weight of distances that have none of their own."""
    reward_batch: Annotated[int, Ge(1)] = 64
    """The most generated images that are scored at once; a smaller number saves memory."""
    metric_weights: str | None = None
    """Folder that holds the weight files of the other distances (docs/rewards.md lists them); nothing is downloaded."""

    def __post_init__(self) -> None:
        check_bounds(self)
        self.terms()

    def terms(self) -> tuple[Term, ...]:
        """The distances that are summed, with their weights. Raises UserError for what --reward cannot name."""
        return parse_terms(self.reward, self.reward_scale)

    @property
    def target_term(self) -> str | None:
        """The first distance that compares with the target; None if all compare with the inputs."""
        return next((term.name for term in self.terms() if term.reference == "target"), None)

    @property
    def scale(self) -> float:
        """What the whole distance is multiplied with: the weight of a single one; 1 for a sum, which has its weights."""
        terms = self.terms()
        return terms[0].weight if len(terms) == 1 else 1.0


class PerceptualDistance(nn.Module, ABC):
    """A frozen distance between images: embed each image once, then compare embeddings row by row. Smaller is nearer."""

    name: str
    """What the distance is called in logs and reports."""
    compared_with: tuple[Reference, ...] = ("target",)
    """Which pictures of a condition `embed_references` needs. The builder of a reward sets it."""
    _anchor: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Says where a distance without weights is.
        self.register_buffer("_anchor", torch.empty(0, device="cpu"), persistent=False)

    @abstractmethod
    def embed(self, images_01: Tensor) -> Embedding:
        """fp32 [N, 3, H, W] in [0, 1] -> tensors with N rows each."""

    @abstractmethod
    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        """Distances fp32 [N] between rows of equal index: "total", and the parts it is made of.

        `first` is the reference (such as the target), `second` what was generated.
        """

    def compare_cells(self, first: Embedding, second: Embedding) -> Tensor:
        """Where `compare`'s "total" comes from: fp32 [N, h, w] over a grid of cells, whose mean is that total.

        Optional: `--credit local` needs it. Raises UserError, as here, if the distance cannot be split into places.
        """
        raise UserError(
            f"--credit local: the reward {self.name} cannot be split into places of the image; take lite, ssim, lpips, "
            "content or a sum of these, or --credit trajectory"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so where images have to be."""
        return self._anchor.device

    def train(self, mode: bool = True) -> PerceptualDistance:
        """A distance is never trained: it stays in eval mode whatever a surrounding module switches to."""
        return super().train(False)

    def embed_targets(self, target_01: Tensor) -> Embedding:
        """fp32 [B, 3, H, W] in [0, 1] -> embedding with B rows, to be computed once per condition."""
        _check_images("targets", target_01, 4)
        return self.embed(target_01)

    def embed_references(self, pictures_01: Mapping[Reference, Tensor]) -> Embedding:
        """`embed_targets` of the picture that the distance compares with; `pictures_01` has those of `compared_with`."""
        (reference,) = self.compared_with
        return self.embed_targets(pictures_01[reference])

    def distance(self, embedding: Embedding, generated_01: Tensor) -> dict[str, Tensor]:
        """Distances fp32 [B, G] of generated images fp32 [B, G, 3, H, W] in [0, 1] to the B embedded targets or references.

        Raises ValueError if the embedding does not hold exactly B rows: a single row is never broadcast.
        """
        return self._distance(self._pairs(embedding, generated_01))

    def distance_and_cells(self, embedding: Embedding, generated_01: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """`distance`, and where each "total" comes from: fp32 [B, G, CELLS, CELLS], whose mean over the cells it is.

        Raises as `distance` does, and as `compare_cells`.
        """
        pairs = self._pairs(embedding, generated_01)
        return self._distance(pairs), torch.stack([to_grid(self.compare_cells(*pair).float()) for pair in pairs])

    def _distance(self, pairs: Sequence[tuple[Embedding, Embedding]]) -> dict[str, Tensor]:
        groups = [self.compare(*pair) for pair in pairs]
        return {name: torch.stack([group[name].float() for group in groups]) for name in groups[0]}

    def _pairs(self, embedding: Embedding, generated_01: Tensor) -> list[tuple[Embedding, Embedding]]:
        """The two arguments of `compare` for each condition: its target as often as it has images, and the images."""
        _check_images("generated images", generated_01, 5)
        b, g = generated_01.shape[:2]
        rows = {part.shape[0] for part in embedding}
        if rows != {b}:
            raise ValueError(f"generated images of {b} conditions cannot be compared with {sorted(rows)} embedded targets")
        generated = self.embed(generated_01.flatten(0, 1))
        pairs = []
        for i in range(b):
            # A view: G copies of a target's feature maps would take more memory than all else.
            target = tuple(part[i : i + 1].expand(g, *part.shape[1:]) for part in embedding)
            pairs.append((target, tuple(part[i * g : (i + 1) * g] for part in generated)))
        return pairs


def _check_images(what: str, images: Tensor, dims: int) -> None:
    if images.ndim != dims or images.shape[-3] != 3 or not images.is_floating_point():
        shape = "[B, 3, H, W]" if dims == 4 else "[B, G, 3, H, W]"
        raise ValueError(f"{what} must be floating point {shape}, got {images.dtype} {list(images.shape)}")
