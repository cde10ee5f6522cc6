"""Serve a web page to try a model: choose a content and a style picture, see the results with their rewards.

pip install -e '.[app]'
python launch/demo_app.py                                   # the small demo model, on http://127.0.0.1:7860
python launch/demo_app.py --init OWNER/NAME --precision bf16
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common import cli
from launch.common.loading import loading
from launch.stylise.config import AppConfig


def main(config: AppConfig) -> None:
    with loading():
        from launch.stylise.page import serve

    serve(config)


if __name__ == "__main__":
    cli.run(main, AppConfig)
