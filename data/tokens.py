"""VQ tokens stored beside the shards, SHARD.tokens.safetensors, so that training need not run the VQ-VAE's encoder.

The metadata "vae" of a token file is the fingerprint of the VQ-VAE that wrote it. It contains, in the shard's order,

    offsets      int64 [n]        offset of a triplet's content in the shard
    tokens       int16 [n, 3, L]  tokens of content, style and target; -1 for a missing target
    shard_bytes  int64 []         the shard's size
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data.shard_writer import ROLES
from stylevar.atomic import file_aside
from stylevar.errors import UserError


def token_file(shard: Path) -> Path:
    """The path of the token file of `shard`."""
    return shard.with_suffix(".tokens.safetensors")


def write_tokens(shard: Path, offsets: Tensor, tokens: Tensor, vae: str) -> None:
    """Atomically write the token file of `shard`. `vae` is the VQ-VAE's fingerprint."""
    tensors = {"offsets": offsets.to(torch.int64), "tokens": tokens.to(torch.int16)}
    tensors["shard_bytes"] = torch.tensor(shard.stat().st_size)
    with file_aside(token_file(shard)) as aside:
        # Only one entry: safetensors writes several in a varying order.
        save_file(tensors, str(aside), {"vae": vae})


def has_tokens(shard: Path, vae: str) -> bool:
    """Whether `shard`, in its current state, has tokens from the VQ-VAE with the fingerprint `vae`."""
    return token_file(shard).is_file() and _wrong(shard, vae) is None


class TokenFiles:
    """Reads the tokens of triplets in some shards. Each process opens its own files."""

    def __init__(self, paths: Sequence[Path], vae: str) -> None:
        """Raises UserError if a token file is missing, damaged, or belongs to another VQ-VAE or shard."""
        self.paths, self.vae = paths, vae
        self._open: dict[int, tuple[NDArray[np.int64], Any]] = {}
        for path in paths:
            reason = _wrong(path, vae) if token_file(path).is_file() else "it does not exist, but others do"
            if reason is not None:
                raise UserError(
                    f"{token_file(path)} cannot be used: {reason}; write it with launch/prepare.py tokenize {path.parent}, "
                    "or remove the token files"
                )

    def get(self, shard: int, offset: int) -> Tensor:
        """Tokens int16 [3, L] of the triplet whose content is at `offset` in shard number `shard`."""
        if shard not in self._open:
            file = safe_open(str(token_file(self.paths[shard])), "pt")
            self._open[shard] = file.get_tensor("offsets").numpy(), file.get_slice("tokens")
        offsets, tokens = self._open[shard]
        row = int(np.searchsorted(offsets, offset))
        if row == len(offsets) or offsets[row] != offset:
            raise UserError(f"{token_file(self.paths[shard])} has no entry for byte {offset}: write it again")
        return tokens[row : row + 1][0]

    def __reduce__(self) -> tuple[type[TokenFiles], tuple[Sequence[Path], str]]:
        return TokenFiles, (self.paths, self.vae)


def open_tokens(paths: Sequence[Path], vae: str) -> TokenFiles | None:
    """Open the token files of `paths`; None if there are none at all. Errors as for `TokenFiles`."""
    return TokenFiles(paths, vae) if any(token_file(path).is_file() for path in paths) else None


def _wrong(shard: Path, vae: str) -> str | None:
    """Why the token file of `shard` cannot be used, or None."""
    try:
        with safe_open(str(token_file(shard)), "pt") as file:
            writer = (file.metadata() or {}).get("vae")
            shard_bytes = int(file.get_tensor("shard_bytes"))
            offsets, tokens = (file.get_slice(name) for name in ("offsets", "tokens"))
            shapes = offsets.get_shape(), tokens.get_shape()
            kinds = offsets.get_dtype(), tokens.get_dtype()
    except (SafetensorError, OSError, RuntimeError) as error:
        return f"it is damaged ({error})"
    if kinds != ("I64", "I16") or len(shapes[1]) != 3 or shapes[1][:2] != [*shapes[0], len(ROLES)]:
        return f"it is damaged (offsets {shapes[0]}, tokens {shapes[1]})"
    if writer != vae:
        return f"it was written by the VQ-VAE {writer}, this one is {vae}"
    if shard_bytes != shard.stat().st_size:
        return "its shard has been rewritten since"
    return None
