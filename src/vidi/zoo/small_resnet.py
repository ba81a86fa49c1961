"""A small, fast residual network for images of 8 to 96 px, trained from scratch."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn


@final
class _Block(nn.Module):
    """3 x 3 convolution, pooling by two, then a residual pair of 3 x 3 convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / 2, W / 2), rounded up."""
        x = F.max_pool2d(self.conv1(x), 2, ceil_mode=True)
        x = F.relu(self.bn1(x), inplace=True)
        return x + F.relu(self.bn2(self.conv2(x)), inplace=True)


@final
class SmallResNet(nn.Module):
    """Stem, three blocks that halve the image, the maximum over all positions, a linear head."""

    head_name = "head"

    def __init__(
        self, *, num_classes: int = 10, channels: int = 3, width: int = 16, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.block1 = _Block(width, 2 * width)
        self.block2 = _Block(2 * width, 4 * width)
        self.block3 = _Block(4 * width, 8 * width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8 * width, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> features (N, 8 * width)."""
        x: Tensor = self.block3(self.block2(self.block1(self.stem(images))))
        return x.amax(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W), normalised, H and W at least 8 -> logits (N, num_classes)."""
        logits: Tensor = self.head(self.dropout(self.embed(images)))
        return logits

    @property
    def stages(self) -> tuple[tuple[str, nn.Module], ...]:
        return (
            ("stem", self.stem),
            ("block1", self.block1),
            ("block2", self.block2),
            ("block3", self.block3),
            ("head", self.head),
        )
