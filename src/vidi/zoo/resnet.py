"""ResNet: a deep network whose blocks add to their input instead of replacing it.

He et al. 2016, "Deep residual learning for image recognition"; the stride of a bottleneck is in its
3 x 3 convolution ("v1.5", Goyal et al. 2017). Parameter names and values are torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

from torch import Tensor, nn

from vidi.zoo.layers import StochasticDepth

# Smaller images get a stem that does not reduce them; see `ResNet`.
SMALL_IMAGE_PX = 96


@final
class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside an identity (or a 1 x 1 where the shape changes)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, drop_probability: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width, stride)
        self.stochastic_depth = StochasticDepth(drop_probability)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, width, H / stride, W / stride)."""
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.stochastic_depth(self.bn2(self.conv2(branch)))
        branch += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(branch)
        return out


@final
class Bottleneck(nn.Module):
    """1 x 1 down, 3 x 3, 1 x 1 up to four times the width, beside an identity."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, drop_probability: float) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)
        self.stochastic_depth = StochasticDepth(drop_probability)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, 4 * width, H / stride, W / stride)."""
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.stochastic_depth(self.bn3(self.conv3(branch)))
        branch += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(branch)
        return out


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
    )


@final
class ResNet(nn.Module):
    """Stem, four stages of blocks, the mean over all positions, a linear head.

    Images below 96 px keep their size through the stem, which reduces larger ones by four: its
    convolution has stride 1 and there is no pooling. Trained from scratch that convolution is
    3 x 3 (He et al. do so for CIFAR-10); `small_kernel` = 7 keeps the one of pretrained weights.
    """

    head_name = "fc"

    def __init__(
        self,
        *,
        block: type[BasicBlock | Bottleneck],
        depths: Sequence[int],
        num_classes: int = 1000,
        channels: int = 3,
        image_px: int = 224,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        small_kernel: Literal[3, 7] = 3,
    ) -> None:
        """
        Args:
            depths: blocks of each of the four stages.
            dropout: share of the features that the head does not see in training.
            stochastic_depth: how often the last block is left out; the others linearly less.
        """
        super().__init__()
        small = image_px < SMALL_IMAGE_PX
        kernel = small_kernel if small else 7
        self.conv1 = nn.Conv2d(
            channels, 64, kernel, stride=1 if small else 2, padding=kernel // 2, bias=False
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        last = sum(depths) - 1
        drops = [stochastic_depth * index / last for index in range(sum(depths))]
        inputs = 64
        stages = []
        for index, depth in enumerate(depths):
            width = 64 * 2**index
            blocks = []
            for position in range(depth):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(block(inputs, width, stride, drops.pop(0)))
                inputs = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def embed(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> features (N, 512 or 2048)."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W), normalised, H and W at least 8 -> logits (N, num_classes)."""
        logits: Tensor = self.fc(self.dropout(self.embed(images)))
        return logits

    @property
    def stages(self) -> tuple[tuple[str, nn.Module], ...]:
        return (
            ("stem", nn.Sequential(self.conv1, self.bn1)),
            ("layer1", self.layer1),
            ("layer2", self.layer2),
            ("layer3", self.layer3),
            ("layer4", self.layer4),
            ("head", self.fc),
        )
