"""Stylise and measure a few conditions: the plain class behind an evaluation, in process or in a Ray actor."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from launch.common.device import choose_device
from launch.evaluation.columns import Column
from launch.evaluation.conditions import ConditionSet, ShardSet
from launch.evaluation.config import EvalConfig
from launch.evaluation.fid import load_art_inception
from launch.evaluation.retrieval import RETRIEVAL, Retrieval
from launch.evaluation.stylizer import Method, Stylizer, build_stylizer
from reward.build import build_term
from stylevar.images import u8_to_01
from stylevar.references import Reference
from stylevar.tf32 import allow_tf32


@dataclass(frozen=True)
class Task:
    """Some conditions (rows of the set) under one method."""

    method: Method
    number: int
    rows: tuple[int, ...]
    with_styles: bool
    """Also give the Inception features of the style images, which all methods share."""

    @property
    def name(self) -> str:
        """Name of its result files."""
        return f"{self.method.name}-{self.number:06d}"


@dataclass(frozen=True)
class Part:
    """A task's results: B * G rows, ordered by condition and then sample.

    columns    {name: list}: key, sample, seconds, and every metric
    features   {"samples": [B * G, D], "styles": [B, D]}, empty without ArtFID's weights
    pictures   {key: PNG of the first sample}
    """

    columns: dict[str, list[Any]]
    features: dict[str, NDArray]
    pictures: dict[str, bytes]


class Evaluator:
    """Holds the metrics, and the last method that was used."""

    def __init__(self, config: EvalConfig, conditions: ConditionSet, columns: tuple[Column, ...], artfid: bool) -> None:
        """Raises UserError for unusable weights."""
        self.config, self.conditions, self.columns = config, conditions, columns
        self.device = choose_device(config.device)
        allow_tf32(False)
        names = dict.fromkeys(column.distance for column in columns)
        self._reward = config.reward_key(conditions.has_targets)
        if self._reward is not None:
            names |= dict.fromkeys(term.name for term in config.reward.terms())
        self._distances = {name: build_term(name, config.reward, self.device) for name in names}
        self._inception = load_art_inception(config.reward.metric_weights, self.device) if artfid else None
        self._retrieval = None
        if isinstance(conditions, ShardSet) and conditions.has_targets:
            self._retrieval = Retrieval(conditions.condition(row) for row in range(len(conditions)))
        self._method: Method | None = None
        self._stylizer: Stylizer | None = None

    def run(self, task: Task) -> Part:
        """Stylise and measure. Seconds are the batch's stylising time per picture; a method's first call warms it up."""
        batch = self.conditions.batch(task.rows)
        group = 1 if task.method.deterministic else self.config.seeds
        stylizer = self._load(task.method)
        if self._method != task.method:
            stylizer.samples(batch.content[:1], batch.style[:1], batch.keys[:1], 1, self.config.seed)
            self._method = task.method
        self._wait()
        start = time.perf_counter()
        images_u8 = stylizer.samples(batch.content, batch.style, batch.keys, group, self.config.seed)
        self._wait()
        seconds = (time.perf_counter() - start) / (len(batch) * group)
        columns: dict[str, list[Any]] = {
            "key": [key for key in batch.keys for _ in range(group)],
            "sample": list(range(group)) * len(batch),
            "seconds": [seconds] * (len(batch) * group),
        }
        references = {name: u8_to_01(image.to(self.device)) for name, image in batch.references.pictures().items()}
        generated_01 = u8_to_01(images_u8.to(self.device))
        metrics = self._metrics(generated_01, references)
        if self._retrieval is not None:
            metrics[RETRIEVAL] = self._retrieval.found(task.rows, generated_01)
        columns |= {name: values.flatten().cpu().tolist() for name, values in metrics.items()}
        features: dict[str, NDArray] = {}
        if self._inception is not None:
            features["samples"] = self._features(images_u8.flatten(0, 1))
            if task.with_styles:
                features["styles"] = self._features(batch.style)
        pictures = {key: _png(images[0]) for key, images in zip(batch.keys, images_u8, strict=True)}
        return Part(columns, features, pictures if self.config.images else {})

    def _load(self, method: Method) -> Stylizer:
        if self._stylizer is None or self._method != method:
            self._stylizer = None  # free its memory first, because the next one may need it
            self._stylizer = build_stylizer(method, self.config, self.device)
        return self._stylizer

    @torch.inference_mode()
    def _metrics(self, generated_01: Tensor, references: dict[Reference, Tensor]) -> dict[str, Tensor]:
        """All columns, and the reward if there is one; [B, G] each."""
        metrics: dict[str, Tensor] = {}
        for column in self.columns:
            distance = self._distance(column.distance, generated_01, references[column.reference])
            metrics[column.key] = column.shown(distance)
        if self._reward is not None:
            terms = self.config.reward.terms()
            weighted = [t.weight * self._distance(t.name, generated_01, references[t.reference]) for t in terms]
            metrics[self._reward] = -torch.stack(weighted).sum(0)
        return metrics

    def _distance(self, name: str, generated_01: Tensor, reference_01: Tensor) -> Tensor:
        distance = self._distances[name]
        at_once = max(1, self.config.reward.reward_batch // generated_01.shape[1])
        parts = [
            distance.distance(distance.embed_targets(reference), generated)["total"]
            for reference, generated in zip(reference_01.split(at_once), generated_01.split(at_once), strict=True)
        ]
        return torch.cat(parts)

    def _features(self, images_u8: Tensor) -> NDArray:
        assert self._inception is not None
        batches = u8_to_01(images_u8).split(self.config.batch)
        return np.concatenate([self._inception(images.to(self.device)).cpu().numpy() for images in batches])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _png(image_u8: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_u8.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
