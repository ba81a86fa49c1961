"""Takes a network's 3 x 3 convolutions over, for as long as a training step lasts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from vidi.winograd.compiled import (
    MULTIPLICATIONS,
    TILE,
    convolve,
    has_winograd,
    weight_gradient,
)

# What the vectors of the compiled code are made for.
_INPUTS: Final = 8
_OUTPUTS: Final = 16
# With half as many it was as fast as torch, whatever the number of channels, with twice as many 1.6
# times as fast (benchmarks/winograd.py).
_FEWEST_TILES: Final = 128
# Images of 2 px are as much work as tiles of 4 px.
_LEAST_SAVED: Final = 2.0
# Of torch.conv2d, and what it takes for those that are left out.
_ARGUMENTS: Final = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_LEFT_OUT: Final = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def winograd_convolutions(on: bool) -> contextlib.AbstractContextManager[Any]:
    """Inside, 3 x 3 convolutions are computed by Winograd's minimal filtering where they can be.

    Those with a stride and a padding of 1, without groups, of 8n channels to 16n, on a processor
    and in bfloat16: inside `torch.autocast`. The others are torch's, and so are small batches of
    tiny images, and all of them where `on` is False. Outputs and gradients differ from torch's by
    a hundredth of their standard deviation or so, several times what rounding to bfloat16 costs
    (docs/measurements.md).

    Where `has_winograd` is False, all are torch's: a run may go on on another machine. Backward
    passes may be outside.

    Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks".
    """
    return _Mode() if on and has_winograd() else contextlib.nullcontext()


def takes_any(model: nn.Module) -> bool:
    """Whether a convolution of the model is of a kind that Winograd's filtering can compute."""
    return any(
        isinstance(part, nn.Conv2d)
        and part.padding_mode == "zeros"
        and _fits(part.weight, part.stride, part.padding, part.dilation, part.groups)
        for part in model.modules()
    )


class _Mode(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            out = _taken(
                {**_LEFT_OUT, **dict(zip(_ARGUMENTS[: len(args)], args, strict=True)), **kwargs}
            )
            if out is not None:
                return out
        return func(*args, **kwargs)


def _taken(told: Mapping[str, Any]) -> Tensor | None:
    """The output of `torch.conv2d` with these arguments; None where torch is to compute it."""
    images, weight, bias = told["input"], told["weight"], told["bias"]
    if (
        not _fits(weight, told["stride"], told["padding"], told["dilation"], told["groups"])
        or not torch.is_autocast_enabled("cpu")
        or torch.get_autocast_dtype("cpu") is not torch.bfloat16
        or images.device.type != "cpu"
        or not images.is_floating_point()
        or images.ndim != 4
        or images.shape[1] != weight.shape[1]
        or not _pays(*images.shape)
        or weight.dtype is not torch.float32
    ):
        return None
    out: Tensor = _Convolution.apply(images.bfloat16(), weight)  # type: ignore[no-untyped-call]
    return out if bias is None else out + bias.to(out.dtype).view(-1, 1, 1)


def _fits(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    return (
        tuple(weight.shape[2:]) == (3, 3)
        and groups == 1
        and weight.shape[1] % _INPUTS == 0
        and weight.shape[0] % _OUTPUTS == 0
        # One number stands for both sides; "same" is what a padding of 1 is here.
        and padding in (1, (1, 1), [1, 1], "same")
        and all(setting in (1, (1, 1), [1, 1]) for setting in (stride, dilation))
    )


def _pays(number: int, _channels: int, height: int, width: int) -> bool:
    """Whether it is worth transforming the weights and, at the edges, what is no image."""
    tiles = math.ceil(height / TILE) * math.ceil(width / TILE)
    saved = 9 * height * width / (MULTIPLICATIONS * tiles) if tiles else 0.0
    return number * tiles >= _FEWEST_TILES and saved >= _LEAST_SAVED


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(images, weight)
        return convolve(images, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        images, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        by_images, by_weight = ctx.needs_input_grad
        return (
            convolve(gradient, weight, turned=True) if by_images else None,
            weight_gradient(images, gradient, weight) if by_weight else None,
        )
