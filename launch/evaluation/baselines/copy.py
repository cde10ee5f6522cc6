"""The content itself. Its score shows how much a metric rewards doing nothing."""

from __future__ import annotations

from torch import Tensor

from launch.evaluation.baselines.base import Baseline


class ContentCopy(Baseline):
    """Returns the content picture unchanged."""

    name = "copy"

    def stylise(self, content_u8: Tensor, style_u8: Tensor) -> Tensor:
        return content_u8
