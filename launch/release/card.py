"""The card of a model on the hub: how to use it, the recipe of its stages, data, results and licence."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.triplets import UnusableImage, decode_rgb
from launch.configs.io import kind_of
from launch.run_report.record import paired, read_run
from launch.run_report.settings import flat
from stylevar.checkpoint import VAE_FILE, ModelWeights
from stylevar.errors import UserError
from stylevar.source import run_of
from stylevar.text_files import read_record
from stylevar.yaml_files import read_yaml

_OF_THE_PLACE = {
    *("kind", "name", "runs", "resume", "config"),
    *("device", "threads", "plan", "cluster", "memory_gb", "memory_budget"),
}
"""Settings that do not affect the result, or describe the machine."""
_DATA = ("shards", "val_shards", "heldout", "novel")
_STAGES = 5


def model_card(
    release: ModelWeights, repo: str, licence: str, files: Sequence[str], summary: Mapping[str, Any] | None = None
) -> str:
    """The card's text, with the hub's metadata at its head.

    Args:
        files: the names of the files that are uploaded with it.
        summary: the summary of an evaluation; see `evaluation_rows`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    head = ModelCardData(
        license=licence,
        pipeline_tag="image-to-image",
        tags=["stylevar", "style-transfer", "visual-autoregressive"],
    )
    stages = list(_stages(release.files.run))
    parts = [
        f"# {repo.partition('/')[2]}",
        "StyleVAR renders a content image in the style of another, with a visual autoregressive transformer."
        + (f" This model: {' then '.join(kind for kind, _ in reversed(stages))}." if stages else ""),
        "![samples](samples.png)" if "samples.png" in files else "",
        _use(release, repo, files),
        _model(release),
        _data(stages),
        _results(release),
        _evaluation(summary),
        _recipe(stages),
        f"## Licence\n\n{licence}",
    ]
    return str(ModelCard(f"---\n{head.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"))


def samples_picture(release: ModelWeights) -> bytes | None:
    """The run's own picture of samples, as PNG; None if there is none."""
    if release.files.run is None:
        return None
    before_after = release.files.run / "before_after.png"
    if before_after.is_file() and _is_final(release):
        return before_after.read_bytes()
    pictures = [some[-1] for tag, some in read_run(release.files.run).pictures.items() if "samples" in tag and some]
    if not pictures:
        return None
    try:
        image = decode_rgb(max(pictures, key=lambda picture: picture.step).png)
    except UnusableImage:
        return None
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def evaluation_rows(summary: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, float, Mapping[str, Any]]]:
    """(metric, mean, the whole entry) for every entry with a number under "mean", at any depth."""
    mean = summary.get("mean")
    if isinstance(mean, (int, float)):
        yield name, float(mean), summary
        return
    for key, value in summary.items():
        if isinstance(value, Mapping):
            yield from evaluation_rows(value, f"{name}, {key}" if name else str(key))


def _use(release: ModelWeights, repo: str, files: Sequence[str]) -> str:
    vae = repo if VAE_FILE in files else "OWNER/VQVAE"
    return (
        "## How to use it\n\n"
        f"```\npython launch/infer.py --init {repo} --vae {vae} \\\n"
        "    --content photo.jpg --style painting.jpg --out stylised.png\n"
        "```\n\n```python\n"
        "from PIL import Image\nfrom stylevar.pipeline import StyleVARPipeline\n\n"
        f'pipeline = StyleVARPipeline.from_pretrained("{repo}", vae="{vae}")\n'
        'pipeline(content=Image.open("photo.jpg"), style=Image.open("painting.jpg"))\n```\n\n'
        "`config.json` holds the architecture and the style weight of each scale: keep it beside the weights."
    )


def _model(release: ModelWeights) -> str:
    arch = release.arch
    parameters = sum(v.numel() for k, v in release.state.items() if v.is_floating_point() and "attn_bias" not in k)
    rows = [
        ("image size", f"{arch.image_size} x {arch.image_size}"),
        ("scales (side of the token map)", ", ".join(map(str, arch.patch_nums))),
        ("style weight of each scale", ", ".join(f"{a:g}" for a in arch.alphas)),
        ("depth, width", f"{arch.depth}, {arch.width}"),
        ("parameters", f"{parameters:,}"),
        ("codebook", f"{arch.V} entries of {arch.Cvae} channels"),
    ]
    return "## Model\n\n" + _table(["", ""], rows)


def _stages(run: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(GRPO or SFT, settings) of a run, then of the run that it started from, as long as they are on this machine."""
    for _ in range(_STAGES):
        file = None if run is None else run / "config.yaml"
        if file is None or not file.is_file():
            return
        settings = read_yaml(file, "restore the run's config")
        if not isinstance(settings, dict):
            return
        yield kind_of(settings).upper(), settings
        init = settings.get("init")
        run = run_of(Path(init)) if isinstance(init, str) else None


def _data(stages: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    rows = [
        (kind, key.replace("_", " "), _public(value))
        for kind, settings in reversed(stages)
        for key, value in settings.items()
        if key in _DATA and value
    ]
    return "## Data\n\n" + _table(["stage", "set", "shards of (content, style, target) triplets"], rows) if rows else ""


def _recipe(stages: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    if not stages:
        return ""
    parts = ["## Recipe"]
    for kind, settings in reversed(stages):
        kept = {key: value for key, value in settings.items() if key not in _OF_THE_PLACE}
        rows = [(f"`{name}`", _public(value)) for name, value in flat(kept)]
        parts.append(f"### {kind}\n\n" + _table(["setting", "value"], rows))
    return "\n\n".join(parts)


def _is_final(release: ModelWeights) -> bool:
    """Whether it is the finished model of the run. The scores after training belong to that one."""
    return release.files.run is not None and Path(release.files.name).resolve() == (release.files.run / "model").resolve()


def _results(release: ModelWeights) -> str:
    """Held-out scores of this very model, if the run has any."""
    if release.files.run is None:
        return ""
    rows: list[Sequence[str]] = []
    if _is_final(release):
        for name, first, last in paired(read_run(release.files.run)):
            for part in ("reward", *sorted(set(last["parts"]) - {"reward"})):
                if part not in first["parts"] or part.startswith("target_"):
                    continue
                before, after = (np.asarray(scores["parts"][part], np.float64) for scores in (first, last))
                error = (after - before).std(ddof=1) / len(after) ** 0.5 if len(after) > 1 else float("nan")
                gain = f"{(after - before).mean():+.4f} ± {error:.4f}"
                rows.append((name, str(len(after)), part, f"{before.mean():.4f}", f"{after.mean():.4f}", gain))
        head = ["held-out set", "conditions", "", "before GRPO", "after", "paired difference ± standard error"]
        table = _table(head, rows) if rows else ""
    else:
        table = _table(["", ""], list(_checkpoint_scores(Path(release.files.name))))
    return f"## Results\n\n{table}" if table else ""


def _checkpoint_scores(checkpoint: Path) -> Iterator[tuple[str, str]]:
    """The scores that are stored in a checkpoint."""
    for file, key, label in (
        ("progress.json", "best", "best held-out reward up to this checkpoint"),
        ("state.json", "best_heldout_loss", "lowest held-out loss up to this checkpoint"),
    ):
        if (checkpoint / file).is_file():
            facts = read_record(checkpoint / file, "use another checkpoint")
            yield "step", str(facts.get("steps", facts.get("step")))
            if facts.get(key) is not None:
                yield label, f"{facts[key]:.4f}"


def _evaluation(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return ""
    rows = []
    for name, mean, known in evaluation_rows(summary):
        others = ", ".join(
            f"{key.replace('_', ' ')} {_number(value)}"
            for key, value in known.items()
            if key != "mean" and isinstance(value, (int, float, list, tuple))
        )
        rows.append((name, f"{mean:.4f}", others))
    if not rows:
        raise UserError("--eval: the summary has no entry with a mean; give the summary.json that launch/eval.py writes")
    return "## Evaluation\n\n" + _table(["metric", "mean", ""], rows)


def _number(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_number(part) for part in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _public(value: Any) -> str:
    """A setting without local folders."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_public, value))
    text = str(value)
    return "/".join(Path(text).parts[-2:]) if Path(text).is_absolute() else text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; empty without rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
