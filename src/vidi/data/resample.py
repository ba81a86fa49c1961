"""torch's vector kernel for `vidi.image.resize`: the same numbers, ten times as fast."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch.nn import functional

from vidi import image
from vidi.image import Interpolation, Pixels

# Enough sizes to notice another algorithm: shrinking, growing, both, odd and even, many channels.
_PROBES = ((97, 41, 3, 32, 32), (9, 30, 3, 21, 17), (64, 64, 1, 24, 100), (200, 7, 3, 50, 7))


def fast_resize(pixels: Pixels, height: int, width: int, interpolation: Interpolation) -> Pixels:
    """`vidi.image.resize`, by torch where torch gives the same numbers on this machine."""
    if interpolation == "nearest" or not same_numbers():
        return image.resize(pixels, height, width, interpolation)
    return _by_torch(pixels, height, width, interpolation)


@functools.cache
def same_numbers() -> bool:
    """Whether this build of torch resamples exactly as `vidi.image.resize` does; asked once."""
    rng = np.random.Generator(np.random.PCG64(0))
    for height, width, channels, to_height, to_width in _PROBES:
        pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        for kind in ("bilinear", "bicubic"):
            expected = image.resize(pixels, to_height, to_width, kind)
            if not np.array_equal(_by_torch(pixels, to_height, to_width, kind), expected):
                return False
    return True


def _by_torch(pixels: Pixels, height: int, width: int, interpolation: str) -> Pixels:
    # Pillow's arrays are read-only, which torch warns of.
    writable = pixels if pixels.flags.writeable else pixels.copy()
    source = torch.from_numpy(writable).permute(2, 0, 1)[None]
    resized = functional.interpolate(source, (height, width), mode=interpolation, antialias=True)
    result: Pixels = resized[0].permute(1, 2, 0).numpy()
    return result
