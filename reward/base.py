"""The interface behind which every perceptual distance stands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from reward.cells import to_grid
from reward.config import RewardConfig as RewardConfig  # users' own distances take it from here
from stylevar.errors import UserError
from stylevar.references import Reference


class MissingWeights(UserError):
    """The weights of a distance are not there; the message says what to put where."""


Embedding = tuple[Tensor, ...]
"""What a distance needs to remember of N images: tensors with N rows each."""


class PerceptualDistance(nn.Module, ABC):
    """A frozen distance between images: embed each image once, then compare embeddings row by row. Smaller is closer."""

    name: str
    """The name of the distance in logs and reports."""
    compared_with: tuple[Reference, ...] = ("target",)
    """The images of a condition that `embed_references` needs. Set when a reward is built."""
    _anchor: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Tracks the device of a distance that has no weights.
        self.register_buffer("_anchor", torch.empty(0, device="cpu"), persistent=False)

    @abstractmethod
    def embed(self, images_01: Tensor) -> Embedding:
        """fp32 [N, 3, H, W] in [0, 1] -> tensors with N rows each."""

    @abstractmethod
    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        """Distances fp32 [N] between rows with the same index: "total" and its parts.

        `first` embeds the references (such as the targets), `second` the generated images.
        """

    def compare_cells(self, first: Embedding, second: Embedding) -> Tensor:
        """The distance per cell of a grid, fp32 [N, h, w]; its mean over the cells is the "total" of `compare`.

        Optional; `--credit local` needs it. A distance that cannot be split over cells raises UserError, as here.
        """
        raise UserError(
            f"--credit local: the reward {self.name} cannot be split over the cells of an image; choose lite, ssim, lpips, "
            "content or a sum of these, or --credit trajectory"
        )

    @property
    def device(self) -> torch.device:
        """The device of the weights; images must be on it, too."""
        return self._anchor.device

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stay in eval mode, whatever a surrounding module switches to."""
        return super().train(False)

    def embed_targets(self, target_01: Tensor) -> Embedding:
        """fp32 [B, 3, H, W] in [0, 1] -> embedding with B rows; call it once per condition."""
        _check_images("targets", target_01, 4)
        return self.embed(target_01)

    def embed_references(self, pictures_01: Mapping[Reference, Tensor]) -> Embedding:
        """`embed_targets` of the image that the distance compares with; `pictures_01` has the images of `compared_with`."""
        (reference,) = self.compared_with
        return self.embed_targets(pictures_01[reference])

    def distance(self, embedding: Embedding, generated_01: Tensor) -> dict[str, Tensor]:
        """Distances fp32 [B, G] of generated images fp32 [B, G, 3, H, W] in [0, 1] to the B embedded targets or references.

        Raises ValueError unless the embedding has exactly B rows; a single row is not broadcast.
        """
        return self._distance(self._pairs(embedding, generated_01))

    def distance_and_cells(self, embedding: Embedding, generated_01: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """`distance`, and the distance per cell, fp32 [B, G, CELLS, CELLS], whose mean over the cells is "total".

        Raises what `distance` and `compare_cells` raise.
        """
        pairs = self._pairs(embedding, generated_01)
        return self._distance(pairs), torch.stack([to_grid(self.compare_cells(*pair).float()) for pair in pairs])

    def _distance(self, pairs: Sequence[tuple[Embedding, Embedding]]) -> dict[str, Tensor]:
        groups = [self.compare(*pair) for pair in pairs]
        return {name: torch.stack([group[name].float() for group in groups]) for name in groups[0]}

    def _pairs(self, embedding: Embedding, generated_01: Tensor) -> list[tuple[Embedding, Embedding]]:
        """The two arguments of `compare` for each condition: its references, repeated for each image, and the images."""
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
