"""Keep freed memory in the process: on CPU, a training step frees and reallocates the same large blocks repeatedly."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MIB = 1 << 20


def keep_freed_memory(scarce: bool = False) -> bool:
    """Tell glibc's malloc not to return freed blocks to the system. Returns True if it accepted the settings.

    Otherwise every activation is mapped, page-faulted and unmapped again, which took up to three quarters of a small
    convolutional training step. The price is memory in pieces too small for the next activation. With `scarce` memory,
    blocks of a MiB and more are returned after all. Does nothing with other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept_below = _MIB if scarce else 32 * _MIB
    settings = ((_M_MMAP_THRESHOLD, kept_below), (_M_TRIM_THRESHOLD, 2047 * _MIB), (_M_TOP_PAD, 256 * _MIB))
    return all(mallopt(option, value) == 1 for option, value in settings)
