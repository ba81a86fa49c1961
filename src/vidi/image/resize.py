"""Resampling in whole numbers, defined so exactly that two programs cannot differ.

Separable: all rows first, then all columns, rounded to 0..255 in between. A target pixel is a
weighted sum of the source pixels under its filter, which is stretched by the scale when shrinking
(so there is no aliasing): a triangle for "bilinear", Keys' cubic with a = -0.5 for "bicubic". The
weights are rounded to integers of 15 bits and one common power of two, the sum is rounded once.
Everything is a pure function of the sizes and the pixels: the sums are computed with float64, but
every one of them is an integer over a power of two that float64 holds exactly, in any order.

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
# Target pixels of one product: their filters overlap, so most of its factors are not zero.
_BLOCK: Final = 16
# Multiplications of one product. Up to here OpenBLAS stays on the thread that asks, which matters
# where several decode; and the numbers stay in the second-level cache.
_PRODUCT: Final = 1 << 18


def resize(pixels: Pixels, height: int, width: int, interpolation: Interpolation) -> Pixels:
    """(H, W, C) -> (height, width, C)."""
    if interpolation == "nearest":
        rows = nearest(pixels.shape[0], height)
        columns = nearest(pixels.shape[1], width)
        return np.ascontiguousarray(pixels[rows[:, None], columns])
    if pixels.shape[1] != width:
        pixels = _turned(_along_first(_turned(pixels), width, interpolation))
    if pixels.shape[0] != height:
        pixels = _along_first(pixels, height, interpolation)
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


def _turned(pixels: Pixels) -> Pixels:
    """(H, W, C) -> (W, H, C); whole pixels are moved, three times as fast as single bytes."""
    height, width, channels = pixels.shape
    rows = np.ascontiguousarray(pixels).reshape(height, width * channels).view(f"V{channels}")
    turned = np.ascontiguousarray(rows.T).view(np.uint8)
    return turned.reshape(width, height, channels)


class _Product(NamedTuple):
    """target[start : start + T] = factors (T, S) @ source[first : first + S]."""

    start: int
    first: int
    factors: NDArray[np.float64]


@functools.lru_cache(maxsize=256)
def _products(source: int, target: int, interpolation: Interpolation) -> tuple[_Product, ...]:
    """`weights` as small matrices, divided by 2**bits."""
    first, taps, bits = weights(source, target, interpolation)
    found = []
    for start in range(0, target, _BLOCK):
        places = first[start : start + _BLOCK, None] + np.arange(taps.shape[1])
        low, high = int(places[0, 0]), min(int(places[-1, -1]) + 1, source)
        factors = np.zeros((len(places), int(places[-1, -1]) + 1 - low))
        rows = np.arange(len(places))[:, None]
        factors[rows, places - low] = taps[start : start + _BLOCK]
        # Past the end the weight is zero, and there are no pixels.
        factors = np.ascontiguousarray(factors[:, : high - low]) / (1 << bits)
        found.append(_Product(start, low, factors))
    return tuple(found)


def _along_first(pixels: Pixels, target: int, interpolation: Interpolation) -> Pixels:
    """(N, M, C) -> (target, M, C)."""
    source = len(pixels)
    flat = np.ascontiguousarray(pixels).reshape(source, -1)
    products = _products(source, target, interpolation)
    longest = max(each.factors.shape[1] for each in products)
    step = min(max(64, _PRODUCT // (_BLOCK * longest)), flat.shape[1])
    out = np.empty((target, flat.shape[1]), dtype=np.uint8)
    # Taken once: fresh memory costs a page fault for every 4 kB of it.
    space = np.empty((source + target) * step)
    for column in range(0, flat.shape[1], step):
        width = min(step, flat.shape[1] - column)
        given = space[: source * width].reshape(source, width)
        sums = space[source * width : (source + target) * width].reshape(target, width)
        given[:] = flat[:, column : column + width]
        for start, first, factors in products:
            count, length = factors.shape
            np.dot(factors, given[first : first + length], out=sums[start : start + count])
        # What is below zero is cut off first, so that dropping the fraction rounds half up.
        sums += 0.5
        np.maximum(sums, 0.0, out=sums)
        np.minimum(sums, 255.0, out=sums)
        out[:, column : column + width] = sums
    return out.reshape(target, *pixels.shape[1:])
