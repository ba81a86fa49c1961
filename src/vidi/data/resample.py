"""`vidi.image.resize` by the fastest of what gives its numbers on this machine.

vidi's own vector instructions take half of the time that torch's for uint8 images take, and those a
tenth of numpy's; docs/measurements.md has the milliseconds.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from vidi import image
from vidi.image import Interpolation, Pixels

_KERNELS = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}


def fast_resize(
    pixels: Pixels,
    height: int,
    width: int,
    interpolation: Interpolation,
    *,
    out: Pixels | None = None,
) -> Pixels:
    """`vidi.image.resize`.

    out: where they may be written to, if it has the right shape; (H, W, C), contiguous.
    """
    shape = (height, width, pixels.shape[2])
    if out is None or out.shape != shape:
        out = np.empty(shape, dtype=np.uint8)
    if image.compiled_resize(pixels, interpolation, out):
        return out
    if interpolation != "nearest" and torch_agrees():
        _by_torch(pixels, interpolation, out)
        return out
    return image.exact_resize(pixels, height, width, interpolation)


@functools.cache
def torch_agrees() -> bool:
    """Whether this build of torch resamples exactly as `vidi.image.resize` does; asked once."""
    return image.same_numbers(_by_torch)


def _by_torch(pixels: Pixels, interpolation: Interpolation, out: Pixels) -> bool:
    # Pillow's arrays are read-only, which torch warns of. And torch would copy a part of a picture
    # by all its threads, which wait for one another twice as long as numpy copies.
    contiguous = pixels.flags.c_contiguous and pixels.flags.writeable
    writable = pixels if contiguous else pixels.copy()
    # Rows of pixels, as a store has them. `functional.interpolate`, which calls the same kernel,
    # gives planes for a single image; to turn those takes as long as to resample.
    _KERNELS[interpolation](
        _planes(writable), list(out.shape[:2]), False, None, None, out=_planes(out)
    )
    return True


def _planes(pixels: Pixels) -> torch.Tensor:
    """(H, W, C) -> (1, C, H, W), the same memory; by numpy, whose views do not hand over the
    interpreter to other threads as torch's do."""
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None])
