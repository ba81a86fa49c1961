"""Resizing by what is fastest without torch; `vidi.image.exact` says what it means."""

from __future__ import annotations

import numpy as np

from vidi.image.compiled import compiled_resize
from vidi.image.exact import exact_resize
from vidi.image.filters import Interpolation, Pixels


def resize(pixels: Pixels, height: int, width: int, interpolation: Interpolation) -> Pixels:
    """(H, W, C) -> (height, width, C)."""
    out = np.empty((height, width, pixels.shape[2]), dtype=np.uint8)
    if compiled_resize(pixels, interpolation, out):
        return out
    return exact_resize(pixels, height, width, interpolation)
