"""EfficientNet B0 to B7 and Lite0 to Lite4: one small network, scaled in three ways at once.

Tan and Le 2019, "EfficientNet: rethinking model scaling": a baseline of inverted residual blocks
(Sandler et al. 2018) with squeeze-and-excitation (Hu et al. 2018) is made wider, deeper and run on
larger images by fixed ratios. EfficientNet-Lite (Liu 2020) leaves out squeeze-and-excitation, takes
ReLU6 for SiLU and keeps the stem and the last features at their width, for devices that compute in
integers; it is also the fastest of them on a processor.

Parameter names and values of B0 to B7 are torchvision's; Lite has the same names. Its convolutions
pad as TensorFlow does, which its pretrained weights need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.zoo.layers import StochasticDepth

# Smaller images are not reduced by the stem and the first stage that has a stride.
SMALL_IMAGE_PX = 96


class _Stage(NamedTuple):
    """A stage of the baseline network: blocks alike but for the first one's stride and inputs."""

    expand: int
    kernel: int
    stride: int
    width: int
    depth: int


# Table 1 of the paper.
_BASELINE = (
    _Stage(1, 3, 1, 16, 1),
    _Stage(6, 3, 2, 24, 2),
    _Stage(6, 5, 2, 40, 2),
    _Stage(6, 3, 2, 80, 3),
    _Stage(6, 5, 1, 112, 3),
    _Stage(6, 5, 2, 192, 4),
    _Stage(6, 3, 1, 320, 1),
)


def _scaled_width(width: float, factor: float) -> int:
    """Scaled, rounded to a multiple of 8, never by more than a tenth downwards."""
    scaled = width * factor
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


@final
class SamePadConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: with a stride, more of it below and right."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, ceil(H / stride), ceil(W / stride))."""
        totals = self.totals(x.shape[2:])
        if not torch.is_grad_enabled() and all(total % 2 == 1 for total in totals):
            # One more row and column of zeros above and left of the kernel make the padding even,
            # so that the convolution does it: half the time of a padded copy of the maps (96
            # channels at 112 px: 7 instead of 13 ms). The backward pass would be slower.
            weight = F.pad(self.weight, (1, 0, 1, 0))
            even = [total // 2 + 1 for total in totals]
            return F.conv2d(x, weight, self.bias, self.stride, even, self.dilation, self.groups)
        # F.pad counts from the last dimension.
        sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
        return F.conv2d(
            F.pad(x, sides), self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )

    def totals(self, sizes: Sequence[int]) -> list[int]:
        """Rows and columns of padding for maps of these sizes."""
        return [
            max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            for size, kernel, stride in zip(sizes, self.kernel_size, self.stride, strict=True)
        ]


class _Style(NamedTuple):
    """What tells B and Lite apart, and batch norm's constants."""

    lite: bool
    norm_eps: float
    norm_momentum: float

    def convolution(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> nn.Conv2d:
        # Without a stride both paddings are the same.
        if self.lite and stride > 1:
            return SamePadConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        return nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )

    def layer(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
    ) -> nn.Sequential:
        """Convolution, batch norm and, unless it is the linear end of a block, the activation."""
        modules: list[nn.Module] = [
            self.convolution(inputs, outputs, kernel, stride=stride, groups=groups),
            nn.BatchNorm2d(outputs, eps=self.norm_eps, momentum=self.norm_momentum),
        ]
        if activation:
            modules.append(nn.ReLU6(inplace=True) if self.lite else nn.SiLU(inplace=True))
        return nn.Sequential(*modules)


@final
class SqueezeExcitation(nn.Module):
    """Scales each channel by what the mean over all positions says about all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        scale: Tensor = self.fc2(F.silu(self.fc1(x.mean(dim=(2, 3), keepdim=True))))
        return x * scale.sigmoid()


@final
class MBConv(nn.Module):
    """Inverted residual: 1 x 1 up, depthwise, squeeze-and-excitation, 1 x 1 down, identity."""

    def __init__(
        self,
        inputs: int,
        stage: _Stage,
        stride: int,
        drop_probability: float,
        style: _Style,
    ) -> None:
        super().__init__()
        expanded = inputs * stage.expand
        layers: list[nn.Module] = []
        if stage.expand != 1:
            layers.append(style.layer(inputs, expanded, 1))
        layers.append(style.layer(expanded, expanded, stage.kernel, stride=stride, groups=expanded))
        if not style.lite:
            layers.append(SqueezeExcitation(expanded, max(1, inputs // 4)))
        layers.append(style.layer(expanded, stage.width, 1, activation=False))
        self.block = nn.Sequential(*layers)
        self.is_residual = stride == 1 and inputs == stage.width
        self.stochastic_depth = StochasticDepth(drop_probability)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, width, H / stride, W / stride)."""
        branch: Tensor = self.block(x)
        if self.is_residual:
            branch = self.stochastic_depth(branch)
            branch += x
        return branch


@final
class EfficientNet(nn.Module):
    """Stem, seven stages of inverted residual blocks, 1 x 1 to the features, mean, linear head.

    Images below 96 px keep their size through the stem and the second stage, which reduce larger
    ones by four; the weights' shapes are the same, so pretrained ones load as they are.
    """

    head_name = "classifier.1"

    def __init__(
        self,
        *,
        width: float,
        depth: float,
        lite: bool = False,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        num_classes: int = 1000,
        channels: int = 3,
        image_px: int = 224,
        dropout: float = 0.2,
        stochastic_depth: float = 0.2,
    ) -> None:
        """
        Args:
            width: factor on the channels of every layer; of Lite, not of the stem and the features.
            depth: factor on the blocks of a stage; of Lite, not of the first and the last one.
            lite: no squeeze-and-excitation, ReLU6, TensorFlow's padding.
            stochastic_depth: how often the last block is left out; the others linearly less.
        """
        super().__init__()
        style = _Style(lite, norm_eps, norm_momentum)
        strides_left_out = 2 if image_px < SMALL_IMAGE_PX else 0
        inputs = 32 if lite else _scaled_width(32, width)
        layers: list[nn.Module] = [
            style.layer(channels, inputs, 3, stride=1 if strides_left_out else 2)
        ]
        strides_left_out -= 1

        stages = []
        for index, stage in enumerate(_BASELINE):
            fixed = lite and index in (0, len(_BASELINE) - 1)
            blocks = stage.depth if fixed else math.ceil(stage.depth * depth)
            stages.append(stage._replace(width=_scaled_width(stage.width, width), depth=blocks))
        num_blocks = sum(stage.depth for stage in stages)
        drops = [stochastic_depth * index / num_blocks for index in range(num_blocks)]
        for stage in stages:
            blocks_of_stage = []
            for position in range(stage.depth):
                stride = stage.stride if position == 0 else 1
                if stride == 2 and strides_left_out > 0:
                    stride, strides_left_out = 1, strides_left_out - 1
                blocks_of_stage.append(MBConv(inputs, stage, stride, drops.pop(0), style))
                inputs = stage.width
            layers.append(nn.Sequential(*blocks_of_stage))

        outputs = 1280 if lite else 4 * inputs
        layers.append(style.layer(inputs, outputs, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(outputs, num_classes))
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                bound = 1.0 / math.sqrt(module.out_features)
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)

    def embed(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> features (N, F), 1280 for B0 and Lite."""
        maps: Tensor = self.features(images)
        return maps.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W), normalised, H and W at least 8 -> logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.embed(images))
        return logits

    @property
    def stages(self) -> tuple[tuple[str, nn.Module], ...]:
        names = ["stem", *(f"stage{index}" for index in range(1, 8)), "features"]
        parts = zip(names, self.features, strict=True)
        return (*parts, ("head", self.classifier))


def with_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of EfficientNet-PyTorch (the packages' files) and of timm made ours.

    Any other name stays. EfficientNet-PyTorch numbers its blocks through, here and in timm they are
    numbered within their stage; its next stage starts where the number of outputs changes.
    """
    located: dict[str, str] = {}
    stage, position, previous = 0, 0, 0
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "_blocks" and parts[2] == "_project_conv":
            outputs = tensor.shape[0]
            stage, position = (stage, position + 1) if outputs == previous else (stage + 1, 0)
            located[f"_blocks.{parts[1]}"] = f"features.{stage}.{position}.block"
            previous = outputs
        elif parts[0] == "blocks" and parts[1].isdigit():
            located[".".join(parts[:3])] = f"features.{int(parts[1]) + 1}.{parts[2]}.block"
    return {_our_name(name, located): tensor for name, tensor in state.items()}


_OUTER = {
    "_conv_stem": "features.0.0",
    "_bn0": "features.0.1",
    "_conv_head": "features.8.0",
    "_bn1": "features.8.1",
    "_fc": "classifier.1",
    "conv_stem": "features.0.0",
    "bn1": "features.0.1",
    "conv_head": "features.8.0",
    "bn2": "features.8.1",
    "classifier": "classifier.1",
}
# Inside a block of Lite; the blocks of the first stage have no expansion.
_INNER = {
    "_expand_conv": "0.0",
    "_bn0": "0.1",
    "_depthwise_conv": "1.0",
    "_bn1": "1.1",
    "_project_conv": "2.0",
    "_bn2": "2.1",
    "conv_pw": "0.0",
    "bn1": "0.1",
    "conv_dw": "1.0",
    "bn2": "1.1",
    "conv_pwl": "2.0",
    "bn3": "2.1",
}
_INNER_FIRST = {
    "_depthwise_conv": "0.0",
    "_bn1": "0.1",
    "_project_conv": "1.0",
    "_bn2": "1.1",
    "conv_dw": "0.0",
    "bn1": "0.1",
    "conv_pw": "1.0",
    "bn2": "1.1",
}


def _our_name(name: str, located: Mapping[str, str]) -> str:
    parts = name.split(".")
    if parts[0] in _OUTER and len(parts) == 2:
        return f"{_OUTER[parts[0]]}.{parts[1]}"
    length = 2 if parts[0] == "_blocks" else 3
    place = located.get(".".join(parts[:length]))
    if place is None or len(parts) != length + 2:
        return name
    inner = _INNER_FIRST if place.startswith("features.1.") else _INNER
    return f"{place}.{inner[parts[length]]}.{parts[length + 1]}" if parts[length] in inner else name
