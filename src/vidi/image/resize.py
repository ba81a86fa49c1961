"""Resampling in whole numbers, defined so exactly that two programs cannot differ.

Separable: all rows first, then all columns, rounded to 0..255 in between. A target pixel is a
weighted sum of the source pixels under its filter, which is stretched by the scale when shrinking
(so there is no aliasing): a triangle for "bilinear", Keys' cubic with a = -0.5 for "bicubic". The
weights are rounded to integers of 15 bits and one common power of two, the sum is rounded once.
Everything is a pure function of the sizes and the pixels: no floating point touches a pixel.

torch's own kernel for uint8 images computes the same numbers with vector instructions
(`vidi.data.resample`); this one needs numpy only, so a bundle predicts the same without torch.
"""

from __future__ import annotations

import functools
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Interpolation = Literal["nearest", "bilinear", "bicubic"]

# Half the width of the filter, in pixels of the larger image.
_REACH: Final = {"bilinear": 1.0, "bicubic": 2.0}
# Numbers of 4 bytes that one step works on: what fits in the second-level cache.
_CHUNK: Final = 1 << 18


def resize(pixels: Pixels, height: int, width: int, interpolation: Interpolation) -> Pixels:
    """(H, W, C) -> (height, width, C)."""
    if interpolation == "nearest":
        rows = nearest(pixels.shape[0], height)
        columns = nearest(pixels.shape[1], width)
        return np.ascontiguousarray(pixels[rows[:, None], columns])
    if pixels.shape[1] != width:
        turned = pixels.transpose(1, 0, 2)
        pixels = _along_first(turned, weights(turned.shape[0], width, interpolation))
        pixels = pixels.transpose(1, 0, 2)
    if pixels.shape[0] != height:
        pixels = _along_first(pixels, weights(pixels.shape[0], height, interpolation))
    return np.ascontiguousarray(pixels)


def nearest(source: int, target: int) -> NDArray[np.int64]:
    """(target,): the source pixel in which the centre of each target pixel lies."""
    return ((2 * np.arange(target, dtype=np.int64) + 1) * source) // (2 * target)


class Weights(NamedTuple):
    """first: (target,) first source pixel; taps: (target, K), rows sum to about 2**bits."""

    first: NDArray[np.int64]
    taps: NDArray[np.int32]
    bits: int


@functools.lru_cache(maxsize=256)
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


def _along_first(pixels: Pixels, weights: Weights) -> Pixels:
    """(N, M, C) -> (target, M, C)."""
    flat = np.ascontiguousarray(pixels).reshape(pixels.shape[0], -1)
    target, num_taps = weights.taps.shape
    out = np.empty((target, flat.shape[1]), dtype=np.uint8)
    half = np.int32(1 << (weights.bits - 1)) if weights.bits else np.int32(0)
    step = max(1, _CHUNK // flat.shape[1])
    for start in range(0, target, step):
        first = weights.first[start : start + step]
        total = np.full((len(first), flat.shape[1]), half, dtype=np.int32)
        for tap in range(num_taps):
            # Past the end the weight is zero; the row only has to exist.
            rows = flat[np.minimum(first + tap, len(flat) - 1)]
            total += rows * weights.taps[start : start + step, tap, None]
        out[start : start + step] = np.clip(total >> weights.bits, 0, 255)
    return out.reshape(target, *pixels.shape[1:])
