"""The methods under evaluation, behind one interface."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from launch.common.defaults import DEMO_MODEL
from launch.evaluation.config import EvalConfig
from launch.run.newest_run import newest_first
from stylevar.checkpoint import CONFIG_FILE, load_pair, read_architecture
from stylevar.config import ModelConfig
from stylevar.errors import UserError
from stylevar.pipeline import StyleVARPipeline
from stylevar.sampling import CoupledStreams, TrajectoryStreams
from stylevar.sampling_config import Sampling
from stylevar.text import clipped, shortened
from stylevar.transformer import StyleVAR

NAME_BYTES = 100
"""Maximum length of a method's name, which is part of file names."""
BASELINES = ("copy", "color-transfer", "adain")


class Stylizer(Protocol):
    """Anything that turns contents and styles into pictures."""

    name: str

    def samples(self, content_u8: Tensor, style_u8: Tensor, keys: tuple[str, ...], group: int, seed: int) -> Tensor:
        """uint8 [B, 3, H, W] twice -> `group` samples of each pair, uint8 [B, group, 3, H, W] on CPU.

        A sample depends on its pair, its key, its number and `seed`, not on the other pairs.
        """
        ...


@dataclass(frozen=True)
class Method:
    """One row of the table: the named baseline, or a checkpoint. `source` is AdaIN's decoder, or the checkpoint;
    `temperature` is the checkpoint's best one according to --sweep-temperature, if given."""

    name: str
    baseline: str | None
    source: str | None
    temperature: float | None = None

    @property
    def deterministic(self) -> bool:
        """Whether all samples of a pair are equal."""
        return self.baseline is not None


def parse_methods(config: EvalConfig) -> tuple[Method, ...]:
    """The methods in --methods or --checkpoint. UserError for an empty list, or if two methods share a name."""
    if config.methods is None and config.checkpoint is None:
        methods = usual_methods()
    else:
        specs = (config.methods or ()) if config.checkpoint is None else (config.checkpoint,)
        methods = tuple(_parse(spec, "adain-lite" if config.adain_vgg is None else "adain") for spec in specs)
    names = [method.name for method in methods]
    if not methods:
        raise UserError("--methods: give at least one, as NAME=CHECKPOINT or one of " + ", ".join(BASELINES))
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--methods: two are named {repeated[0]}; give them different names, as NAME=CHECKPOINT")
    for name in config.compare or ():
        if name not in names:
            raise UserError(f"--compare {name}: no such method; there are {', '.join(names)}")
    return methods


def usual_methods() -> tuple[Method, ...]:
    """The demo's model, and that of the newest finished run in `runs` with pictures of the same size."""
    demo = DEMO_MODEL.parent
    methods = [Method("demo", None, str(demo))]
    size = ModelConfig.load(demo / CONFIG_FILE).image_size
    for model in (run / "model" for run in newest_first()):
        if (model / CONFIG_FILE).is_file() and ModelConfig.load(model / CONFIG_FILE).image_size == size:
            name = re.sub(r"[^\w.-]", "_", model.parent.name)
            methods.append(Method(f"run-{name}", None, str(model)))
            break
    return tuple(methods)


def _parse(spec: str, adain: str) -> Method:
    """`adain`: the name of AdaIN in the table, if the user gives none."""
    name, equals, source = spec.partition("=")
    if not equals or os.path.exists(spec):  # a path may contain "="
        if spec in BASELINES:
            return Method(adain if spec == "adain" else spec, spec, None)
        path = Path(os.path.abspath(spec))
        if re.fullmatch(r"[\w-]+", spec) and not os.path.exists(path):
            raise UserError(f"--methods {spec}: neither a method ({', '.join(BASELINES)}) nor a file or folder")
        name = path.parent.name if path.name == "model" else path.stem
        name, source = shortened(re.sub(r"[^\w.-]", "_", name), NAME_BYTES), spec
    if not re.fullmatch(r"[\w.-]+", name) or not source:
        raise UserError(f"--methods {clipped(spec)}: give NAME=CHECKPOINT, with a name of letters, digits and . _ -")
    if shortened(name, NAME_BYTES) != name:
        raise UserError(f"--methods {clipped(spec)}: give a name of at most {NAME_BYTES} bytes, since it names files")
    if source in BASELINES:
        return Method(name, source, None)
    return Method(adain, name, source) if name == "adain" else Method(name, None, source)


class CheckpointStylizer:
    """Samples of a StyleVAR model."""

    def __init__(self, name: str, model: StyleVAR, config: EvalConfig, temperature: float | None = None) -> None:
        """`temperature` replaces the config's."""
        self.name, self.config, self.temperature = name, config, temperature
        self.pipeline = StyleVARPipeline(model, CoupledStreams if config.coupled else TrajectoryStreams)

    def samples(self, content_u8: Tensor, style_u8: Tensor, keys: tuple[str, ...], group: int, seed: int) -> Tensor:
        """See `Stylizer.samples`. Raises UserError if the pictures' size is not the model's."""
        size = self.pipeline.image_size
        if content_u8.shape[-2:] != (size, size):
            shape = "x".join(str(side) for side in content_u8.shape[-2:])
            raise UserError(f"{self.name} makes pictures of {size}x{size}, the conditions are {shape}: choose others")
        chosen = self.config.sampling
        if self.temperature is not None:
            chosen = dataclasses.replace(chosen, temperature=self.temperature)
        sampling = Sampling(num_samples=group, seed=seed, **dataclasses.asdict(chosen))
        return self.pipeline.sample(content_u8, style_u8, keys, sampling, at_once=len(keys) * group)


def build_stylizer(method: Method, config: EvalConfig, device: torch.device) -> Stylizer:
    """Build the method on `device`. Raises UserError if its files cannot be used."""
    if method.baseline is not None:
        from launch.evaluation.baselines.build import build_baseline

        build: Callable[..., Stylizer] = build_baseline
        decoder = config.adain_decoder if method.source is None else Path(method.source)
        return build(method.baseline, adain_vgg=config.adain_vgg, adain_decoder=decoder, device=device)
    assert method.source is not None
    model = load_pair(method.source, config.vae)[1]
    model.vae.to(device)
    return CheckpointStylizer(method.name, model.to(device), config, method.temperature)


def image_size(methods: Sequence[Method], config: EvalConfig) -> int:
    """The side of the first checkpoint's pictures; 256 without a checkpoint."""
    for method in methods:
        if method.baseline is None and method.source is not None:
            return read_architecture(method.source, config.vae).image_size
    return 256
