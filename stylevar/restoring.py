"""Errors of damaged checkpoints. This module is apart from `checkpoint.py`, which loads the model's code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from stylevar.errors import UserError

EARLIER = "resume an earlier checkpoint, or start a new run"
"""The remedy for a damaged checkpoint of a run."""


@contextmanager
def restoring(checkpoint: Path) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint's parts are taken over into a UserError that names the checkpoint."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:  # whatever is missing or misplaced
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"checkpoint {checkpoint} cannot be restored ({reason}): {EARLIER}") from error
