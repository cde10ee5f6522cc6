"""The web page of `launch/demo_app.py`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.stylise.config import AppConfig
from launch.stylise.pretrained import load_pipeline
from launch.stylise.session import MAX_SAMPLES, Session, example_photos, example_styles
from reward.scorer import build_scorer
from stylevar.errors import UserError
from stylevar.sampling_config import Sampling

FONTS = ["system-ui", "sans-serif"]  # system fonts, so that the page works offline
UPLOAD = "64mb"
"""The largest picture that a visitor may upload."""
QUEUE = 32
"""Requests that may wait; further ones are told to come back later."""
PREVIEW, RESULTS, WIDTH = 260, 500, 1220  # pixels; WIDTH is the page's width in a typical window


def import_gradio() -> Any:
    """Import gradio with its analytics turned off. UserError if it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise UserError(f"the page needs {error.name}, which is not installed: pip install -e '.[app]'") from error
    return gradio


def build_page(session: Session, examples: Path) -> Any:
    """Build the page, a `gradio.Blocks`. Unpacks a few style pictures into the folder `examples`."""
    gr = import_gradio()
    usual = session.pipeline.model.arch.sampling

    def stylise(content: str | None, style: str | None, *values: Any) -> Iterator[tuple[Any, ...]]:
        samples, strength, temperature, top_k, top_p, seed, fit = values
        try:
            sampling = Sampling(
                int(samples),
                int(seed or 0),
                style_strength=strength,
                top_k=int(top_k),
                top_p=top_p,
                temperature=temperature,
            )
            for view in session.stylise(content, style, sampling, fit):
                yield view.results, view.evolution, view.status, view.rewards
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    with gr.Blocks(title="StyleVAR", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown("# StyleVAR\nThe content of one picture in the style of another, drawn scale by scale.")
        with gr.Row():
            with gr.Column(scale=3):
                with gr.Row():
                    content = gr.Image(label="Content", type="filepath", image_mode=None, height=PREVIEW)
                    style = gr.Image(label="Style", type="filepath", image_mode=None, height=PREVIEW)
                gr.Examples(example_photos(), content, label="Photographs")
                gr.Examples(example_styles(examples), style, label="Styles")
                with gr.Row():
                    strength = gr.Slider(-1, 1, 0, step=0.05, label="Style strength", info="below 0 for more content")
                    samples = gr.Slider(1, MAX_SAMPLES, 4, step=1, label="Samples", info="results to choose from")
                with gr.Accordion("More settings", open=False):
                    with gr.Row():
                        temperature = gr.Slider(0.1, 2, usual.temperature, step=0.05, label="Temperature")
                        seed = gr.Number(0, label="Seed", precision=0)
                    with gr.Row():
                        top_k = gr.Slider(0, 4096, usual.top_k, step=1, label="Top k (0 for all)")
                        top_p = gr.Slider(0, 1, usual.top_p, step=0.01, label="Top p (0 for all)")
                    fit = gr.Radio(["crop", "pad", "stretch"], value="crop", label="How the content becomes square")
                with gr.Row():
                    start = gr.Button("Stylise", variant="primary", scale=4)
                    stop = gr.Button("Stop")
            with gr.Column(scale=2):
                status = gr.Markdown("Choose two pictures and press *Stylise*.")
                results = gr.Gallery(label="Results", columns=2, object_fit="contain", height=RESULTS, format="png")
                rewards = gr.Markdown()
        # One row for all scales.
        scales = session.pipeline.model.arch.scales
        evolution = gr.Gallery(
            label="The best one, scale by scale",
            columns=scales,
            object_fit="contain",
            height=WIDTH // scales + 12,
            format="png",
        )
        settings = [samples, strength, temperature, top_k, top_p, seed, fit]
        shown = [results, evolution, status, rewards]
        run = start.click(stylise, [content, style, *settings], shown, api_name="stylise", show_progress_on=[results])
        stop.click(None, cancels=[run])
    return page


def serve(config: AppConfig, block: bool = True) -> Any:
    """Load the model and serve the page. Without `block`, return the page at once; the caller closes it."""
    gr = import_gradio()
    pipeline = load_pipeline(config.model)
    session = Session(pipeline, build_scorer(config.reward, pipeline.model.device))
    with tempfile.TemporaryDirectory() as examples:
        page = build_page(session, Path(examples))
        try:
            page.queue(max_size=QUEUE, default_concurrency_limit=1).launch(
                server_name=config.host,
                server_port=config.port,
                share=False,
                show_error=True,
                max_file_size=UPLOAD,
                prevent_thread_lock=not block,
                theme=gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
                allowed_paths=[str(Path(photo).parent) for photo in example_photos()[:1]],
            )
        except OSError as error:
            raise UserError(f"--host {config.host} --port {config.port}: {error}; choose another port") from error
    return page
