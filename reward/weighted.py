"""A weighted sum of distances, itself a distance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reward.base import Embedding, PerceptualDistance
from reward.cells import to_grid
from stylevar.references import Reference


class Part(NamedTuple):
    """One distance of a sum, its weight, and the image of the condition that it compares with."""

    distance: PerceptualDistance
    weight: float
    reference: Reference = "target"


class WeightedSum(PerceptualDistance):
    """sum_i w_i d_i. Components: "total"; `distance_NAME` of each distance, unweighted; and `NAME_PART` of its parts.

    A distance may appear in several parts with different references; it embeds each generated image only once.
    """

    name = "sum"

    def __init__(self, parts: Mapping[str, Part]) -> None:
        """`parts`: the parts by name."""
        super().__init__()
        self.names = tuple(parts)
        self.weights = tuple(part.weight for part in parts.values())
        self._references: tuple[Reference, ...] = tuple(part.reference for part in parts.values())
        self.compared_with = tuple(dict.fromkeys(self._references))
        distances = list(dict.fromkeys(part.distance for part in parts.values()))
        self.distances = nn.ModuleList(distances)
        self._used = tuple(distances.index(part.distance) for part in parts.values())
        self._lengths: tuple[int, ...] = ()
        self.eval()

    def embed(self, images_01: Tensor) -> Embedding:
        """The concatenated embeddings of all distances, each distance once."""
        embeddings = [distance.embed(images_01) for distance in self._distances()]
        self._lengths = tuple(len(embedding) for embedding in embeddings)  # the same at every call
        return tuple(tensor for embedding in embeddings for tensor in embedding)

    def embed_targets(self, target_01: Tensor) -> Embedding:
        """The embedding if all parts compare with the same image."""
        return self.embed_references(dict.fromkeys(self.compared_with, target_01))

    def embed_references(self, pictures_01: Mapping[Reference, Tensor]) -> Embedding:
        """The concatenated embeddings of all parts, each of its own reference."""
        distances = self._distances()
        embeddings = (
            distances[used].embed_targets(pictures_01[reference])
            for used, reference in zip(self._used, self._references, strict=True)
        )
        return tuple(tensor for embedding in embeddings for tensor in embedding)

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        """`first` is from `embed_references` or `embed_targets`, `second` from `embed`."""
        components: dict[str, Tensor] = {}
        weighted = []
        for name, weight, (distance, *pair) in zip(self.names, self.weights, self._pairs_of(first, second), strict=True):
            parts = distance.compare(*pair)
            components[f"distance_{name}"] = parts["total"]
            components |= {f"{name}_{part}": value for part, value in parts.items() if part != "total"}
            weighted.append(weight * parts["total"].float())
        return components | {"total": torch.stack(weighted).sum(0)}

    def compare_cells(self, first: Embedding, second: Embedding) -> Tensor:
        """fp32 [N, 16, 16]: the weighted sum of the distances' maps."""
        weighted = [
            weight * to_grid(distance.compare_cells(*pair).float())
            for weight, (distance, *pair) in zip(self.weights, self._pairs_of(first, second), strict=True)
        ]
        return torch.stack(weighted).sum(0)

    def _pairs_of(self, first: Embedding, second: Embedding) -> Iterator[tuple[PerceptualDistance, Embedding, Embedding]]:
        """Yield each part's distance and its slices of the two embeddings."""
        distances, generated = self._distances(), _slices(self._lengths)
        for used, own in zip(self._used, _slices(self._lengths[used] for used in self._used), strict=True):
            yield distances[used], first[own], second[generated[used]]

    def _distances(self) -> list[PerceptualDistance]:
        return list(self.distances)  # type: ignore[arg-type]


def _slices(lengths: Iterable[int]) -> list[slice]:
    """The slices of consecutive pieces with these lengths."""
    lengths = list(lengths)
    return [slice(end - length, end) for end, length in zip(accumulate(lengths), lengths, strict=True)]
