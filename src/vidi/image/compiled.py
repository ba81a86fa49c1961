"""resize.c, where it was compiled when vidi was installed and this processor can run it."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from vidi import native
from vidi.image.exact import same_numbers
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


def compiled_resize(pixels: Pixels, interpolation: Interpolation, out: Pixels) -> bool:
    """`exact_resize` of a colour image into `out`, which has the target's height and width.

    False where nothing was done: there is no library, the image is not of three channels, it
    shrinks by too much, or `out` has gaps.
    """
    library = _library()
    return library is not None and _resized(library, pixels, interpolation, out)


def has_compiled_resize() -> bool:
    """Whether `compiled_resize` can do anything on this machine."""
    return _library() is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    return native.load(
        _FILE,
        declare=_declare,
        is_right=lambda found: same_numbers(functools.partial(_resized, found)),
    )


def _declare(library: Any) -> None:
    address, size, weighing = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.POINTER(_Weights)
    number = ctypes.c_int
    library.resize.argtypes = (
        *(address, size, number, number),
        *(address, number, number),
        *(weighing, weighing, address, size),
    )


def _resized(
    library: ctypes.CDLL, pixels: Pixels, interpolation: Interpolation, out: Pixels
) -> bool:
    if interpolation == "nearest" or pixels.shape[2] != 3 or not out.flags.c_contiguous:
        return False
    if pixels.strides[1:] != (3, 1):
        pixels = np.ascontiguousarray(pixels)
    height, width = out.shape[:2]
    columns = _for_c(pixels.shape[1], width, interpolation)
    rows = _for_c(pixels.shape[0], height, interpolation)
    space = np.empty((max(pixels.shape[0], rows.reach), 3 * width + _MARGIN_BYTES), dtype=np.uint8)
    done = library.resize(
        *(pixels.ctypes.data, pixels.strides[0], pixels.shape[0], pixels.shape[1]),
        *(out.ctypes.data, height, width),
        *(columns.pointer, rows.pointer, space.ctypes.data, space.strides[0]),
    )
    return bool(done)


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
