"""StyleVAR: a visual autoregressive transformer that renders a content image in the style of another."""

from stylevar.build import build_vae_stylevar
from stylevar.config import ModelConfig
from stylevar.errors import UserError

__all__ = ["ModelConfig", "UserError", "build_vae_stylevar"]
