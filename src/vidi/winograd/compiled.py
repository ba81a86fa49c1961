"""winograd.c, where it was compiled when vidi was installed and this processor can run it."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from vidi import native

# Written by hatch_build.py.
_FILE: Final = Path(__file__).with_name("libwinograd.so")
# Root mean square of the error over that of the result, on random numbers: 1 % is what rounding
# costs. A compiler or processor that gets something wrong is further off.
_TOLERANCE: Final = 0.02

# Side of the square of outputs that are computed together, and what they cost.
TILE: Final = 4
MULTIPLICATIONS: Final = 36

_SIZE: Final = ctypes.c_int64
_ADDRESS: Final = ctypes.c_void_p
_FOUR: Final = ctypes.c_int64 * 4


class _Shape(ctypes.Structure):
    _fields_ = (
        ("images", _SIZE),
        ("height", _SIZE),
        ("width", _SIZE),
        ("inputs", _SIZE),
        ("outputs", _SIZE),
    )


def has_winograd() -> bool:
    """Whether `convolve` and `weight_gradient` can be called on this machine."""
    return _library() is not None


def convolve(images: Tensor, weights: Tensor, *, turned: bool = False) -> Tensor:
    """A 3 x 3 convolution with a stride and a padding of 1.

    Args:
        images: (N, inputs, H, W) bfloat16, channels last; inputs a multiple of 8.
        weights: (outputs, inputs, 3, 3) float32; outputs a multiple of 16.
        turned: the gradient of that convolution by its input, from the one by its output: images
            are (N, outputs, H, W) and the result is (N, inputs, H, W).

    Returns:
        (N, outputs, H, W) bfloat16, channels last.
    """
    return _convolve(_loaded(), images, weights, turned=turned)


def weight_gradient(images: Tensor, gradient: Tensor, weights: Tensor) -> Tensor:
    """The gradient of `convolve` by its weights.

    Args:
        images: (N, inputs, H, W) bfloat16, channels last.
        gradient: by the output, (N, outputs, H, W) bfloat16, channels last.
        weights: (outputs, inputs, 3, 3) float32, for its shape and layout.

    Returns:
        Like the weights.
    """
    return _weight_gradient(_loaded(), images, gradient, weights)


def _convolve(library: Any, images: Tensor, weights: Tensor, *, turned: bool) -> Tensor:
    number, inputs, height, width = images.shape
    outputs, strides = len(weights), list(weights.stride())
    if turned:
        outputs = weights.shape[1]
        strides[:2] = strides[1], strides[0]
    threads = torch.get_num_threads()
    packed = torch.empty(library.packed_size(inputs, outputs), dtype=torch.bfloat16, device="cpu")
    library.pack_weights(
        *(weights.data_ptr(), _FOUR(*strides), inputs, outputs, turned),
        *(packed.data_ptr(), threads),
    )
    out = torch.empty(
        (number, outputs, height, width),
        dtype=torch.bfloat16,
        device="cpu",
        memory_format=torch.channels_last,
    )
    shape = ctypes.byref(_Shape(number, height, width, inputs, outputs))
    scratch = _scratch(library.convolve_bytes(shape, threads))
    library.convolve(
        *(shape, images.data_ptr(), packed.data_ptr(), out.data_ptr()),
        *(scratch.data_ptr(), threads),
    )
    return out


def _weight_gradient(library: Any, images: Tensor, gradient: Tensor, weights: Tensor) -> Tensor:
    number, inputs, height, width = images.shape
    shape = ctypes.byref(_Shape(number, height, width, inputs, len(weights)))
    out = torch.empty_like(weights)
    threads = torch.get_num_threads()
    scratch = _scratch(library.weight_gradient_bytes(shape, threads))
    library.weight_gradient(
        *(shape, images.data_ptr(), gradient.data_ptr(), out.data_ptr(), _FOUR(*out.stride())),
        *(scratch.data_ptr(), threads),
    )
    return out


def _scratch(size: int) -> Tensor:
    # torch's memory begins at a multiple of 64 bytes.
    return torch.empty(size, dtype=torch.uint8, device="cpu")


def _loaded() -> ctypes.CDLL:
    library = _library()
    assert library is not None, "ask `has_winograd` first"
    return library


@functools.cache
def _library() -> ctypes.CDLL | None:
    # Its threads are those of torch's own OpenMP library, whose functions it finds because torch
    # was imported before; where torch has another one, it cannot be loaded.
    return native.load(_FILE, declare=_declare, is_right=_is_right)


def _declare(library: Any) -> None:
    shape, number = ctypes.POINTER(_Shape), ctypes.c_int
    library.packed_size.argtypes = (_SIZE, _SIZE)
    library.convolve_bytes.argtypes = (shape, number)
    library.weight_gradient_bytes.argtypes = (shape, number)
    for told in (library.packed_size, library.convolve_bytes, library.weight_gradient_bytes):
        told.restype = _SIZE
    strides = ctypes.POINTER(_SIZE)
    library.pack_weights.argtypes = (_ADDRESS, strides, _SIZE, _SIZE, number, _ADDRESS, number)
    library.convolve.argtypes = (shape, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, number)
    library.weight_gradient.argtypes = (
        *(shape, _ADDRESS, _ADDRESS, _ADDRESS, strides, _ADDRESS, number),
    )
    for silent in (library.pack_weights, library.convolve, library.weight_gradient):
        silent.restype = None


def _is_right(library: Any) -> bool:
    """Whether its three functions come close to torch's, on images that no tile divides."""
    numbers = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, generator=numbers, device="cpu")
    layout = torch.channels_last
    images = draw(2, 40, 9, 6).bfloat16().contiguous(memory_format=layout)
    gradient = draw(2, 48, 9, 6).bfloat16().contiguous(memory_format=layout)
    weights = draw(48, 40, 3, 3)
    with torch.no_grad():
        pairs = (
            (
                _convolve(library, images, weights, turned=False),
                F.conv2d(images.float(), weights, padding=1),
            ),
            (
                _convolve(library, gradient, weights, turned=True),
                conv2d_input(  # type: ignore[no-untyped-call]
                    images.shape, weights, gradient.float(), padding=1
                ),
            ),
            (
                _weight_gradient(library, images, gradient, weights),
                conv2d_weight(  # type: ignore[no-untyped-call]
                    images.float(), weights.shape, gradient.float(), padding=1
                ),
            ),
        )
    # Written so that a result that is not a number is not right.
    return all((ours - right).norm() <= _TOLERANCE * right.norm() for ours, right in pairs)
