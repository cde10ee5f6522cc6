"""StyleVAR: a visual autoregressive transformer that renders a content image in the style of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stylevar.config import ModelConfig
from stylevar.errors import UserError

if TYPE_CHECKING:
    from stylevar.build import build_vae_stylevar

__all__ = ["ModelConfig", "UserError", "build_vae_stylevar"]


def __getattr__(name: str) -> Any:
    # Imported late: the model takes seconds to import, and processes that only read or score images do not need it.
    if name == "build_vae_stylevar":
        from stylevar.build import build_vae_stylevar

        return build_vae_stylevar
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
