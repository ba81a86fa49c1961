"""Which pixels of an image make a pixel of a larger or smaller one, and how much each counts."""

from __future__ import annotations

import functools
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Interpolation = Literal["nearest", "bilinear", "bicubic"]

# Half the width of the filter, in pixels of the larger image.
_REACH: Final = {"bilinear": 1.0, "bicubic": 2.0}


def nearest(source: int, target: int) -> NDArray[np.int64]:
    """(target,): the source pixel in which the centre of each target pixel lies."""
    return ((2 * np.arange(target, dtype=np.int64) + 1) * source) // (2 * target)


class Weights(NamedTuple):
    """first: (target,) first source pixel; taps: (target, K), rows sum to about 2**bits."""

    first: NDArray[np.int64]
    taps: NDArray[np.int32]
    bits: int


# A folder of photos has some hundred widths and heights.
@functools.lru_cache(maxsize=1024)
def weights(source: int, target: int, interpolation: Interpolation) -> Weights:
    """Which source pixels make a target pixel, and how much each counts."""
    scale = source / target
    stretch = max(scale, 1.0)
    reach = _REACH[interpolation] * stretch
    center = scale * (np.arange(target) + 0.5)
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((center + reach + 0.5).astype(np.int64), source)
    place = first[:, None] + np.arange(int((last - first).max()))
    distance = np.abs((place + 0.5 - center[:, None]) / stretch)
    exact = _triangle(distance) if interpolation == "bilinear" else _cubic(distance)
    exact[place >= last[:, None]] = 0.0
    exact /= exact.sum(axis=1, keepdims=True)
    largest = float(exact.max())
    bits = 0
    while bits < 22 and int(0.5 + largest * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    scaled = exact * (1 << bits)
    taps = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)
    return Weights(first, taps, bits)


def _triangle(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1.0 - distance, 0.0)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys, "Cubic convolution interpolation for digital image processing", 1981, a = -0.5."""
    near = (1.5 * distance - 2.5) * distance**2 + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return np.where(distance < 1.0, near, np.where(distance < 2.0, far, 0.0))
