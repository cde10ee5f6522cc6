"""Keep freed memory in the process: on CPU, a training step frees and reallocates the same large blocks repeatedly."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MIB = 1 << 20


def keep_freed_memory() -> bool:
    """Tell glibc's malloc not to return large blocks to the system. Returns True if it accepted the settings.

    Otherwise every activation is mapped, page-faulted and unmapped again, which took up to three quarters of a small
    convolutional training step. Does nothing with other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, 32 * _MIB), (_M_TRIM_THRESHOLD, 2047 * _MIB), (_M_TOP_PAD, 256 * _MIB))
    return all(mallopt(option, value) == 1 for option, value in settings)
