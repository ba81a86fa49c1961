"""Memory that a process keeps instead of handing it back and taking it anew."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
# An explicit threshold may be as large as a C int.
_LARGEST: Final = 2**31 - 1
_HABIT: Final = 128 << 10


def keep_memory(on: bool = True, *, block_bytes: int = 2**30) -> bool:
    """Tell glibc to keep what is freed; it would hand large blocks back and take them anew.

    The page faults of that take half of the time of a training step on a processor, and as long
    again as decoding a photo does (docs/measurements.md). Returns whether the C library took the
    setting; others than glibc have no such habit. `on` = False goes back to its habit.

    block_bytes: larger blocks are handed back all the same.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mmap, trim = (block_bytes, min(2 * block_bytes, _LARGEST)) if on else (_HABIT, _HABIT)
    return bool(mallopt(_M_MMAP_THRESHOLD, mmap)) and bool(mallopt(_M_TRIM_THRESHOLD, trim))
