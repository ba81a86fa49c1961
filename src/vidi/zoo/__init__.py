"""The architectures: one file a family, each readable alone, and the table of all of them.

Every network maps float images (N, C, H, W), already normalised, to logits (N, num_classes), and
has three things besides `forward`:

- `embed(images)` -> features (N, F), all that comes before the head (and before its dropout);
- `head_name`, where in the network its last, linear layer is;
- `stages`, ordered (name, module) from the input to the head: together, every parameter once.

Constructors take keywords only: `num_classes`, `channels`, and where they mean something
`image_px`, `dropout` and `stochastic_depth`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from torch import nn

from vidi.zoo.alexnet import AlexNet
from vidi.zoo.efficientnet import EfficientNet
from vidi.zoo.lenet import LeNet5, TwoConv
from vidi.zoo.mlp import MLP
from vidi.zoo.pretrained import IMAGENET, Weights
from vidi.zoo.resnet import BasicBlock, Bottleneck, ResNet
from vidi.zoo.small_cnn import SmallCNN, SmallCNNs
from vidi.zoo.vgg import VGG

__all__ = ["IMAGENET", "MODELS", "ModelSpec", "Weights"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One architecture: how it is built, and the sizes it is made for."""

    build: Callable[..., nn.Module]
    # The size that its authors train it at.
    image_px: int
    # Smaller images leave nothing after the last reduction.
    min_image_px: int = 8


def _small_cnns(*, width: int, networks: int) -> ModelSpec:
    return ModelSpec(build=partial(SmallCNNs, width=width, networks=networks), image_px=32)


def _vgg(depths: Sequence[int], *, batch_norm: bool = False) -> ModelSpec:
    return ModelSpec(build=partial(VGG, depths=depths, batch_norm=batch_norm), image_px=224)


def _resnet(block: type[BasicBlock | Bottleneck], depths: Sequence[int]) -> ModelSpec:
    return ModelSpec(build=partial(ResNet, block=block, depths=depths), image_px=224)


def _efficientnet(
    width: float, depth: float, image_px: int, dropout: float, *, eps: float = 1e-5
) -> ModelSpec:
    """Batch norm's constants of B5 to B7 are those of the TensorFlow weights."""
    momentum = 0.1 if eps == 1e-5 else 0.01
    build = partial(
        EfficientNet,
        width=width,
        depth=depth,
        dropout=dropout,
        norm_eps=eps,
        norm_momentum=momentum,
    )
    return ModelSpec(build=build, image_px=image_px)


def _lite(width: float, depth: float, image_px: int, dropout: float) -> ModelSpec:
    build = partial(
        EfficientNet, width=width, depth=depth, dropout=dropout, lite=True, norm_eps=1e-3
    )
    return ModelSpec(build=build, image_px=image_px)


MODELS: Final[Mapping[str, ModelSpec]] = {
    "mlp": ModelSpec(build=MLP, image_px=28, min_image_px=1),
    "lenet5": ModelSpec(build=LeNet5, image_px=28),
    "two_conv": ModelSpec(build=TwoConv, image_px=28),
    "small_cnn": ModelSpec(build=SmallCNN, image_px=32),
    "small_cnn_x2": ModelSpec(build=partial(SmallCNN, width=64), image_px=32),
    "small_cnn_x3": ModelSpec(build=partial(SmallCNN, width=96), image_px=32),
    "small_cnn_x4": ModelSpec(build=partial(SmallCNN, width=128), image_px=32),
    "small_cnn_x2_mean2": _small_cnns(width=64, networks=2),
    "small_cnn_x3_mean2": _small_cnns(width=96, networks=2),
    "alexnet": ModelSpec(build=AlexNet, image_px=224),
    "vgg11": _vgg((1, 1, 2, 2, 2)),
    "vgg11_bn": _vgg((1, 1, 2, 2, 2), batch_norm=True),
    "vgg13": _vgg((2, 2, 2, 2, 2)),
    "vgg13_bn": _vgg((2, 2, 2, 2, 2), batch_norm=True),
    "vgg16": _vgg((2, 2, 3, 3, 3)),
    "vgg16_bn": _vgg((2, 2, 3, 3, 3), batch_norm=True),
    "vgg19": _vgg((2, 2, 4, 4, 4)),
    "vgg19_bn": _vgg((2, 2, 4, 4, 4), batch_norm=True),
    "resnet18": _resnet(BasicBlock, (2, 2, 2, 2)),
    "resnet34": _resnet(BasicBlock, (3, 4, 6, 3)),
    "resnet50": _resnet(Bottleneck, (3, 4, 6, 3)),
    "resnet101": _resnet(Bottleneck, (3, 4, 23, 3)),
    "resnet152": _resnet(Bottleneck, (3, 8, 36, 3)),
    "efficientnet_b0": _efficientnet(1.0, 1.0, 224, 0.2),
    "efficientnet_b1": _efficientnet(1.0, 1.1, 240, 0.2),
    "efficientnet_b2": _efficientnet(1.1, 1.2, 260, 0.3),
    "efficientnet_b3": _efficientnet(1.2, 1.4, 300, 0.3),
    "efficientnet_b4": _efficientnet(1.4, 1.8, 380, 0.4),
    "efficientnet_b5": _efficientnet(1.6, 2.2, 456, 0.4, eps=1e-3),
    "efficientnet_b6": _efficientnet(1.8, 2.6, 528, 0.5, eps=1e-3),
    "efficientnet_b7": _efficientnet(2.0, 3.1, 600, 0.5, eps=1e-3),
    "efficientnet_lite0": _lite(1.0, 1.0, 224, 0.2),
    "efficientnet_lite1": _lite(1.0, 1.1, 240, 0.2),
    "efficientnet_lite2": _lite(1.1, 1.2, 260, 0.3),
    "efficientnet_lite3": _lite(1.2, 1.4, 300, 0.3),
    "efficientnet_lite4": _lite(1.4, 1.8, 380, 0.3),
}
