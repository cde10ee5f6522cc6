"""Stylise pictures from Python, for example in a notebook.

from PIL import Image
from stylevar.pipeline import StyleVARPipeline

pipe = StyleVARPipeline.from_pretrained("owner/name")
pipe(content=Image.open("photo.jpg"), style=Image.open("painting.jpg")).images[0].save("result.png")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from stylevar.checkpoint import load_pair
from stylevar.conditions import ConditionState, encode_conditions
from stylevar.config import Precision
from stylevar.errors import BadSetting, UserError
from stylevar.fit import Fit, Restore
from stylevar.images import to_device, u8_to_pm1
from stylevar.pictures import DAMAGE, Size, from_u8, restored, square, to_u8, upright_rgb
from stylevar.sampler import Sampler, Streams
from stylevar.sampling import TrajectoryStreams, trajectory_seeds
from stylevar.sampling_config import KvCache, Sampling
from stylevar.transformer import StyleVAR

Pictures = Image.Image | Sequence[Image.Image]


@dataclass(frozen=True)
class Stylised:
    """The results: `pairs[p][i]` is sample i of pair p, and `images` lists all of them in that order."""

    pairs: list[list[Image.Image]]

    @property
    def images(self) -> list[Image.Image]:
        return [image for samples in self.pairs for image in samples]


@dataclass(frozen=True)
class Partial:
    """The results after `number` of `total` scales, the last one of `side` x `side` tokens.

    `decode()` returns them in the form of `Stylised.pairs`, and takes as long as decoding the final results. f_hat is the
    latent [pairs * samples, D, h, h].
    """

    number: int
    total: int
    side: int
    f_hat: Tensor
    decode: Callable[[], list[list[Image.Image]]]


class StyleVARPipeline:
    """A model ready to stylise; `model.vae` is its tokenizer."""

    def __init__(self, model: StyleVAR, streams: Streams = TrajectoryStreams) -> None:
        """`streams`: see `Sampler`."""
        self.model, self.streams = model, streams

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        vae: str | Path | None = None,
        revision: str | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "fp32",
        alphas: Sequence[float] | None = None,
    ) -> StyleVARPipeline:
        """Load a StyleVAR and its VQ-VAE.

        Args:
            model: a file of weights, the folder of a model, a run, one of its checkpoints or merges, or a hub id
                `owner/name[:file]`.
            vae: a file, a folder or a hub id; by default `vqvae.safetensors` beside the model, or the VQ-VAE of its run.
            revision: branch, tag or commit on the hub, for both.
            device: by default a GPU if there is one.
            precision: with bf16 the blocks multiply and attend in bfloat16, and a GPU also decodes in bfloat16.
            alphas: style weight per scale, instead of those in the model's config.
        Raises:
            UserError: weights are missing or do not fit.
        """
        tokenizer, loaded = load_pair(str(model), None if vae is None else str(vae), alphas, revision)
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        tokenizer.to(target)
        loaded.to(target)
        if precision == "bf16":
            loaded.hold_in(torch.bfloat16)
        return cls(loaded)

    @property
    def image_size(self) -> int:
        """Side of the model's square inputs and outputs in pixels."""
        return self.model.arch.image_size

    def __call__(
        self,
        content: Pictures,
        style: Pictures,
        *,
        num_samples: int = 1,
        seed: int = 0,
        style_strength: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        kv_cache: KvCache | None = None,
        fit: Fit = "crop",
        restore: Restore = "aspect",
        names: Sequence[str] | None = None,
        batch: int = 8,
    ) -> Stylised:
        """Stylise pairs of pictures of any mode, shape and EXIF orientation.

        Args:
            content, style: one picture each, or lists that are paired in order. A single picture is paired with every
                picture of a list.
            num_samples, ..., kv_cache: see `Sampling`.
            fit: how pictures become square, see `prepared`; restore: the shape of the results, see `pictures.restored`.
            names: one per pair. A pair's random numbers depend only on `seed` and its name, so its results are the same
                in any list. Without names all pairs get the same random numbers.
            batch: number of results computed at once.
        Raises:
            UserError: a setting is out of bounds, or a picture cannot be used.
        """
        if batch < 1:
            raise BadSetting("batch", batch, "must be at least 1")
        sampling = Sampling(
            num_samples,
            seed,
            style_strength=style_strength,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            kv_cache=kv_cache,
        )
        pairs = self.prepared(content, style, fit)
        results_u8 = self.sample(pairs.content_u8, pairs.style_u8, names or pairs.same_names(), sampling, batch)
        return Stylised(pairs.restored(results_u8, restore))

    def scales(
        self,
        content: Pictures,
        style: Pictures,
        sampling: Sampling | None = None,
        fit: Fit = "crop",
        restore: Restore = "aspect",
        names: Sequence[str] | None = None,
    ) -> Iterator[Partial]:
        """Sample the same results scale by scale: one `Partial` after each scale, for all pairs and samples at once."""
        sampling = sampling or Sampling()
        pairs = self.prepared(content, style, fit)
        seeds = self._seeds(names or pairs.same_names(), len(pairs.sizes), sampling)
        sampler = self._sampler(sampling)

        def decoded(f_hat: Tensor) -> list[list[Image.Image]]:
            return pairs.restored(sampler.images(f_hat, seeds).cpu(), restore)

        state = self._encoded(pairs.content_u8, pairs.style_u8)
        sides = self.model.arch.patch_nums
        for s, scale in enumerate(sampler.scales(state, seeds)):
            yield Partial(s + 1, len(sides), sides[s], scale.f_hat, partial(decoded, scale.f_hat))

    def prepared(self, content: Pictures, style: Pictures, fit: Fit) -> Prepared:
        """Pair the pictures and make them upright, RGB and square.

        `fit` crop and stretch apply to contents and styles alike. With pad only contents are padded and styles are
        cropped, because a margin would count as style.
        """
        contents, styles = _listed(content, "content"), _listed(style, "style")
        if 1 in (len(contents), len(styles)):
            contents, styles = contents * max(1, len(styles)), styles * max(1, len(contents))
        if len(contents) != len(styles) or not contents:
            raise UserError(
                f"{len(contents)} content and {len(styles)} style pictures cannot be paired: give as many, or one of either"
            )
        squares = [
            torch.stack([to_u8(square(image, self.image_size, how)) for image in images])
            for images, how in ((contents, fit), (styles, style_fit(fit)))
        ]
        return Prepared(squares[0], squares[1], [image.size for image in contents], fit)

    def sample(
        self, content_u8: Tensor, style_u8: Tensor, names: Sequence[str], sampling: Sampling, at_once: int = 8
    ) -> Tensor:
        """Sample results uint8 [B, num_samples, 3, S, S] on CPU for squares uint8 [B, 3, S, S]; `names` seed the streams.

        `at_once` limits the number of results computed together; it does not change them.
        """
        seeds = self._seeds(names, len(content_u8), sampling)
        parts = self._sampler(sampling, at_once).parts(lambda rows: self._encoded(content_u8[rows], style_u8[rows]), seeds)
        return torch.cat([part.images.cpu() for part in parts])

    def _seeds(self, names: Sequence[str], pairs: int, sampling: Sampling) -> Tensor:
        if len(names) != pairs:
            raise UserError(f"{len(names)} names for {pairs} pairs: give one for each")
        return trajectory_seeds(sampling.seed, 0, tuple(names), sampling.num_samples)

    def _sampler(self, sampling: Sampling, at_once: int = 0) -> Sampler:
        return Sampler(
            self.model,
            sampling.over(self.model.arch.sampling),
            style_strength=sampling.style_strength,
            streams=self.streams,
            at_once=at_once,
        )

    @torch.no_grad()
    def _encoded(self, content_u8: Tensor, style_u8: Tensor) -> ConditionState:
        content, style = (u8_to_pm1(to_device(images, self.model.device)) for images in (content_u8, style_u8))
        return encode_conditions(self.model, style, content)


@dataclass(frozen=True)
class Prepared:
    """B pairs as the model's input, uint8 [B, 3, S, S], with the data needed to give results their contents' shapes."""

    content_u8: Tensor
    style_u8: Tensor
    sizes: list[Size]
    fit: Fit

    def same_names(self) -> list[str]:
        """The same name for every pair, for pairs without names."""
        return ["pair"] * len(self.sizes)

    def restored(self, results_u8: Tensor, to: Restore) -> list[list[Image.Image]]:
        """Convert uint8 [B, G, 3, S, S] to pictures, see `pictures.restored`."""
        return [
            [restored(from_u8(image), size, self.fit, to) for image in images]
            for images, size in zip(results_u8, self.sizes, strict=True)
        ]


def style_fit(fit: Fit) -> Fit:
    """The fit of style pictures, given that of the contents."""
    return "crop" if fit == "pad" else fit


def _listed(pictures: Pictures, role: str) -> list[Image.Image]:
    listed = []
    for number, image in enumerate([pictures] if isinstance(pictures, Image.Image) else pictures):
        if not isinstance(image, Image.Image):
            raise UserError(f"{role} {number} is a {type(image).__name__}: give PIL images, as from PIL.Image.open(path)")
        try:
            listed.append(upright_rgb(image))
        except DAMAGE as error:  # a file that Pillow reads only now, or a mode that does not map to RGB
            raise UserError(f"{role} {number} cannot be used ({error}): give an 8-bit RGB picture") from error
    return listed
