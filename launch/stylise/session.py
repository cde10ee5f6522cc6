"""The app without its page: takes pictures and settings, returns results and their history."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from data.patterns import expand_shards
from data.shards import TripletShards
from data.triplets import load_photo
from launch.common.defaults import DEMO_DATA
from launch.stylise.best_of import order
from reward.scorer import Scorer
from stylevar.contracts import References, Scores
from stylevar.errors import UserError
from stylevar.fit import Fit
from stylevar.pictures import from_u8, restored, to_u8
from stylevar.pipeline import Prepared, StyleVARPipeline
from stylevar.sampling_config import Sampling

Captioned = list[tuple[Image.Image, str]]
MAX_SAMPLES = 16
EXAMPLE_PHOTOS = ("astronaut", "boats", "cat", "dahlia", "farmhouse", "pagoda", "raccoon", "sunset")
EXAMPLE_STYLES = 8


@dataclass(frozen=True)
class View:
    """The content of the page: results and the best one's history, each with captions, and a status line.

    `rewards` is a Markdown table of the results' rewards, empty until they are finished.
    """

    results: Captioned
    evolution: Captioned
    status: str
    rewards: str = ""


class Session:
    """A model and the reward of its results."""

    def __init__(self, pipeline: StyleVARPipeline, scorer: Scorer) -> None:
        self.pipeline, self.scorer = pipeline, scorer

    def stylise(self, content: str | None, style: str | None, sampling: Sampling, fit: Fit = "crop") -> Iterator[View]:
        """Stylise two files: a view after each scale, and a last one with rewards, best first. UserError for bad input."""
        if not content or not style:
            raise UserError(f"no {'style' if content else 'content'} picture: choose an example, or give one of your own")
        if sampling.num_samples > MAX_SAMPLES:
            raise UserError(f"{sampling.num_samples} samples: at most {MAX_SAMPLES}")
        short_side = 2 * self.pipeline.image_size
        pair = load_photo(content, short_side).image, load_photo(style, short_side).image
        size = pair[0].size
        frames: list[tuple[str, list[Image.Image]]] = []
        for partial in self.pipeline.scales(*pair, sampling, fit, "square"):
            frames.append((f"{partial.side}x{partial.side}", partial.decode()[0]))
            shown = [(caption, [restored(image, size, fit, "aspect") for image in images]) for caption, images in frames]
            caption, images = shown[-1]
            history = [(earlier[0], at) for at, earlier in shown]
            status = f"{caption} tokens ({partial.number} of {partial.total})"
            yield View([(image, f"{i + 1}") for i, image in enumerate(images)], history, status)
        scores = self._scores(self.pipeline.prepared(*pair, fit), frames[-1][1])
        best_first = order(scores.rewards)[0].tolist()
        results = [(images[i], f"{i + 1}: reward {scores.rewards[0, i]:.2f}") for i in best_first]
        history = [(earlier[best_first[0]], at) for at, earlier in shown]
        status = f"{len(images)} results, best first" if len(images) > 1 else "1 result"
        yield View(results, history, status, _table(scores, best_first))

    def _scores(self, pair: Prepared, squares: list[Image.Image]) -> Scores:
        """The scores of the results."""
        images_u8 = torch.stack([to_u8(image) for image in squares])[None]
        return self.scorer.score(images_u8, References(content=pair.content_u8, style=pair.style_u8))


def _table(scores: Scores, best_first: list[int]) -> str:
    """Rewards and the distances behind them, in Markdown."""
    prefix = "distance_"
    parts = {name.removeprefix(prefix): part[0] for name, part in scores.components.items() if name.startswith(prefix)}
    head = ["result", "reward", *(parts or ["distance"])]
    columns = [scores.rewards[0], *(parts.values() or [scores.components["total"][0]])]
    rows = [[str(i + 1), *(f"{column[i]:.2f}" for column in columns)] for i in best_first]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
    return f"{table}\n\nA higher reward is better. It combines the distances beside it, which should be low."


def example_photos() -> list[str]:
    """Files of a few of the demo's photographs."""
    return [str(DEMO_DATA / "photos" / f"{name}.jpg") for name in EXAMPLE_PHOTOS]


def example_styles(folder: Path, count: int = EXAMPLE_STYLES) -> list[str]:
    """Files of `count` of the demo's style pictures, each of another style, unpacked into `folder`."""
    triplets = TripletShards(expand_shards([str(DEMO_DATA / "heldout-*.tar")]))
    files: dict[str, str] = {}
    for number in range(len(triplets)):
        condition = triplets.usable(number)
        name = str(condition.meta["style_name"])
        if name not in files:
            files[name] = str(folder / f"{name}.png")
            from_u8(condition.style).save(files[name])
        if len(files) == count:
            break
    return list(files.values())
