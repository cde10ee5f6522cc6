"""A reward of one's own, `--reward fickle:Fickle`, that goes wrong once, at a call that a file names."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from torch import Tensor

from reward.base import Embedding, PerceptualDistance
from reward.config import RewardConfig

MOOD = "FICKLE"
"""Environment variable with the path of the file: "CALL WHAT", such as "12 raises". The file is removed when it happens."""
WAYS = ("raises", "is NaN", "hangs")


class Fickle(PerceptualDistance):
    """The mean squared difference of pixels. It counts its calls of `compare`."""

    name = "fickle"

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        self.calls = 0

    def embed(self, images_01: Tensor) -> Embedding:
        return (images_01,)

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        parts = {"total": (first[0] - second[0]).square().mean((1, 2, 3))}
        self.calls += 1
        mood = Path(os.environ.get(MOOD, "/nothing"))
        if not mood.is_file():
            return parts
        call, _, what = mood.read_text().partition(" ")
        if self.calls < int(call):
            return parts
        mood.unlink(missing_ok=True)
        if what == "raises":
            raise ValueError("the reward is in a bad mood")
        if what == "hangs":
            _press_ctrl_c()
            while True:
                time.sleep(0.1)
        return {name: value * float("nan") for name, value in parts.items()}


def _press_ctrl_c() -> None:
    """Be the person who waits in vain and presses Ctrl-C until the program ends."""
    if "FICKLE_PERSON" in os.environ:
        press = f"while kill -{int(signal.SIGINT)} {os.getpid()}; do sleep 0.5; done"
        subprocess.Popen(["sh", "-c", press], stderr=subprocess.DEVNULL)
