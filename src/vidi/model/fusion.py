"""Batch norms multiplied into convolutions, for inference."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vidi.errors import UsageError
from vidi.model.classifier import Classifier


def fused(classifier: Classifier) -> Classifier:
    """A copy for inference with each batch norm multiplied into the convolution before it.

    A pair is found by looking on: a batch norm whose input is the very tensor that a convolution
    put out. Its logits are compared with the original's before it is given out.

    Raises:
        UsageError: the logits differ; a convolution's output is used elsewhere as well.
    """
    copied = copy.deepcopy(classifier).eval()
    produced: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: dict[nn.BatchNorm2d, nn.Conv2d] = {}

    def after_convolution(module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        # The tensor is held, so that its identity is not given to another.
        produced[id(output)] = (module, output)

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        if id(inputs[0]) in produced:
            pairs[module] = produced[id(inputs[0])][0]

    handles = [
        module.register_forward_hook(after_convolution)
        for module in copied.modules()
        if isinstance(module, nn.Conv2d)
    ]
    handles += [
        module.register_forward_pre_hook(before_norm)
        for module in copied.modules()
        # Not its descendants: timm's have an activation inside.
        if type(module) is nn.BatchNorm2d
    ]
    generator = torch.Generator().manual_seed(0)
    shape = (2, classifier.channels, classifier.image_px, classifier.image_px)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images = images.to(classifier.scale.device)
    with torch.no_grad():
        expected = copied(images)
        for handle in handles:
            handle.remove()
        places = {module: name for name, module in copied.named_modules()}
        for norm, convolution in pairs.items():
            assert norm.running_mean is not None
            assert norm.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            convolution.weight, convolution.bias = weight, bias
            copied.set_submodule(places[norm], nn.Identity())
        got = copied(images)
    if not torch.allclose(got, expected, rtol=1e-3, atol=1e-3):
        raise UsageError(f"the batch norms of '{classifier.name}' cannot be fused")
    return copied
