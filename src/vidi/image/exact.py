"""Resampling in whole numbers, defined so exactly that two programs cannot differ.

Separable: all rows first, then all columns, rounded to 0..255 in between. A target pixel is a
weighted sum of the source pixels under its filter, which is stretched by the scale when shrinking
(so there is no aliasing): a triangle for "bilinear", Keys' cubic with a = -0.5 for "bicubic". The
weights are rounded to integers of 15 bits and one common power of two, the sum is rounded once.
Everything is a pure function of the sizes and the pixels: the sums are computed with float64, but
every one of them is an integer over a power of two that float64 holds exactly, in any order.

Vector instructions compute the same numbers: vidi's own where they were compiled
(`vidi.image.compiled`), torch's for uint8 images (`vidi.data.resample`). `exact_resize` needs numpy
only and is what those are checked against, so a bundle predicts the same on any machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidi.image.filters import Interpolation, Pixels, nearest, weights

# Target pixels of one product: their filters overlap, so most of its factors are not zero.
_BLOCK: Final = 16
# Multiplications of one product. Up to here OpenBLAS stays on the thread that asks, which matters
# where several decode; and the numbers stay in the second-level cache.
_PRODUCT: Final = 1 << 18
# Enough sizes to notice another algorithm: shrinking, growing, both, odd and even, many channels.
_PROBES: Final = ((97, 41, 3, 32, 32), (9, 30, 3, 21, 17), (64, 64, 1, 24, 100), (200, 7, 3, 50, 7))


def exact_resize(pixels: Pixels, height: int, width: int, interpolation: Interpolation) -> Pixels:
    """(H, W, C) -> (height, width, C), by numpy: what every other way to resize has to give."""
    if interpolation == "nearest":
        rows = nearest(pixels.shape[0], height)
        columns = nearest(pixels.shape[1], width)
        return np.ascontiguousarray(pixels[rows[:, None], columns])
    if pixels.shape[1] != width:
        pixels = _turned(_along_first(_turned(pixels), width, interpolation))
    if pixels.shape[0] != height:
        pixels = _along_first(pixels, height, interpolation)
    return np.ascontiguousarray(pixels)


def same_numbers(other: Callable[[Pixels, Interpolation, Pixels], bool]) -> bool:
    """Whether another way to resize gives what `exact_resize` gives, wherever it gives anything.

    other: image, filter, where to write to -> whether it did.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    for height, width, channels, to_height, to_width in _PROBES:
        pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        for kind in ("bilinear", "bicubic"):
            expected = exact_resize(pixels, to_height, to_width, kind)
            made = np.empty_like(expected)
            if other(pixels, kind, made) and not np.array_equal(made, expected):
                return False
    return True


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
