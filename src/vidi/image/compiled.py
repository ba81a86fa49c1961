"""resize.c, where it was compiled when vidi was installed and this processor can run it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from vidi.image.filters import Interpolation, Pixels, Weights, weights

# Written by hatch_build.py; not resize.so, which Python would import in the place of resize.py.
_FILE: Final = Path(__file__).with_name("libresize.so")
# Five pixels are written at a time, as sixteen bytes; of the last five, four may be past the end.
_MARGIN_BYTES: Final = 16


class _Weights(ctypes.Structure):
    _fields_ = (
        ("first", ctypes.c_void_p),
        ("taps", ctypes.c_void_p),
        ("count", ctypes.c_int),
        ("bits", ctypes.c_int),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """None where there is no such file, or it is not for this processor."""
    # Missing, or of another machine: a folder of packages can be shared.
    with contextlib.suppress(OSError, AttributeError):
        found = ctypes.CDLL(str(_FILE))
        if found.supported():
            address, size, weighing = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.POINTER(_Weights)
            number = ctypes.c_int
            found.resize.argtypes = (
                *(address, size, number, number),
                *(address, number, number),
                *(weighing, weighing, address, size),
            )
            return found
    return None


def resize(
    pixels: Pixels, height: int, width: int, interpolation: Interpolation, out: Pixels | None
) -> Pixels | None:
    """`vidi.image.resize` of colour images; None for others, and where one shrinks by too much.

    `out` is taken if it has the right shape and lies without gaps.
    """
    compiled = library()
    if compiled is None or interpolation == "nearest" or pixels.shape[2] != 3:
        return None
    if pixels.strides[1:] != (3, 1):
        pixels = np.ascontiguousarray(pixels)
    columns = _for_c(pixels.shape[1], width, interpolation)
    rows = _for_c(pixels.shape[0], height, interpolation)
    if out is None or out.shape != (height, width, 3) or not out.flags.c_contiguous:
        out = np.empty((height, width, 3), dtype=np.uint8)
    space = np.empty((max(pixels.shape[0], rows.reach), 3 * width + _MARGIN_BYTES), dtype=np.uint8)
    done = compiled.resize(
        *(pixels.ctypes.data, pixels.strides[0], pixels.shape[0], pixels.shape[1]),
        *(out.ctypes.data, height, width),
        *(columns.pointer, rows.pointer, space.ctypes.data, space.strides[0]),
    )
    return out if done else None


class _ForC(NamedTuple):
    """reach: rows that are read, past the last one with a weight of zero, too."""

    pointer: Any
    reach: int
    # C knows the addresses only: what lies there must stay.
    numbers: Weights


@functools.lru_cache(maxsize=1024)
def _for_c(source: int, target: int, interpolation: Interpolation) -> _ForC:
    found = weights(source, target, interpolation)
    count = found.taps.shape[1]
    told = _Weights(found.first.ctypes.data, found.taps.ctypes.data, count, found.bits)
    return _ForC(ctypes.pointer(told), int(found.first[-1]) + count + 1, found)
