"""A weighted sum of distances, which is a distance itself."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor, nn

from reward.base import Embedding, PerceptualDistance
from reward.cells import to_grid


class WeightedSum(PerceptualDistance):
    """sum_i w_i d_i. Components: "total"; `distance_NAME` of each distance, unweighted; and `NAME_PART` of its parts."""

    name = "sum"

    def __init__(self, parts: Mapping[str, tuple[PerceptualDistance, float]]) -> None:
        """`parts` are distances and their weights by their name."""
        super().__init__()
        self.names = tuple(parts)
        self.parts = nn.ModuleList([distance for distance, _ in parts.values()])
        self.weights = tuple(weight for _, weight in parts.values())
        self._lengths: tuple[int, ...] = ()
        self.eval()

    def embed(self, images_01: Tensor) -> Embedding:
        """The embeddings of all distances, one after the other."""
        embeddings = [distance.embed(images_01) for distance in self._distances()]
        self._lengths = tuple(len(embedding) for embedding in embeddings)  # the same at every call
        return tuple(tensor for embedding in embeddings for tensor in embedding)

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        weighted = []
        for name, distance, weight, own in zip(self.names, self._distances(), self.weights, self._slices(), strict=True):
            parts = distance.compare(first[own], second[own])
            found[f"distance_{name}"] = parts["total"]
            found |= {f"{name}_{part}": value for part, value in parts.items() if part != "total"}
            weighted.append(weight * parts["total"].float())
        return found | {"total": torch.stack(weighted).sum(0)}

    def compare_cells(self, first: Embedding, second: Embedding) -> Tensor:
        """fp32 [N, 16, 16]: the weighted sum of the distances' maps."""
        weighted = [
            weight * to_grid(distance.compare_cells(first[own], second[own]).float())
            for distance, weight, own in zip(self._distances(), self.weights, self._slices(), strict=True)
        ]
        return torch.stack(weighted).sum(0)

    def _slices(self) -> list[slice]:
        """Where each distance's tensors lie in an embedding."""
        ends = list(accumulate(self._lengths))
        return [slice(end - length, end) for end, length in zip(ends, self._lengths, strict=True)]

    def _distances(self) -> list[PerceptualDistance]:
        return list(self.parts)  # type: ignore[arg-type]
