"""LeNet-5, and the tutorials' two-convolution network.

LeCun et al. 1998, "Gradient-based learning applied to document recognition", with ReLU and max
pooling in place of the scaled tanh and the trained subsampling of 1998.
"""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn


@final
class LeNet5(nn.Module):
    """Two convolutions with pooling, two hidden layers, a linear head.

    At 28 px the sizes are those of the paper: 6 maps of 14 px, 16 maps of 5 px, 120, 84. Other
    sizes are pooled to those 5 px, so every size from 8 px on works.
    """

    head_name = "head"

    def __init__(self, *, num_classes: int = 10, channels: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, kernel_size=5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.pool = nn.AdaptiveMaxPool2d(5)
        self.hidden1 = nn.Linear(16 * 5 * 5, 120)
        self.hidden2 = nn.Linear(120, 84)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(84, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> features (N, 84)."""
        maps = F.relu(self.conv1(images))
        # Below 10 px pooling would leave less than the 5 x 5 that the second convolution reads.
        if min(maps.shape[2:]) >= 10:
            maps = F.max_pool2d(maps, 2)
        maps = self.pool(F.relu(self.conv2(maps)))
        return F.relu(self.hidden2(F.relu(self.hidden1(maps.flatten(1)))))

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W), normalised, H and W at least 8 -> logits (N, num_classes)."""
        logits: Tensor = self.head(self.dropout(self.embed(images)))
        return logits

    @property
    def stages(self) -> tuple[tuple[str, nn.Module], ...]:
        return (
            ("conv1", self.conv1),
            ("conv2", self.conv2),
            ("hidden1", self.hidden1),
            ("hidden2", self.hidden2),
            ("head", self.head),
        )


@final
class TwoConv(nn.Module):
    """The network of PyTorch's MNIST example: conv 32, conv 64, pool, 128 hidden, head.

    The example flattens 64 maps of 12 px, which fixes the image size at 28; here the maps are
    pooled to 12 px, which is the same at 28 px and lets every size from 8 px on through.
    """

    head_name = "fc2"

    def __init__(self, *, num_classes: int = 10, channels: int = 1, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, kernel_size=3)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3)
        self.pool = nn.AdaptiveMaxPool2d(12)
        self.dropout1 = nn.Dropout(dropout / 2)
        self.fc1 = nn.Linear(64 * 12 * 12, 128)
        self.dropout2 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(128, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> features (N, 128)."""
        maps = self.pool(F.relu(self.conv2(F.relu(self.conv1(images)))))
        return F.relu(self.fc1(self.dropout1(maps).flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W), normalised, H and W at least 8 -> logits (N, num_classes)."""
        logits: Tensor = self.fc2(self.dropout2(self.embed(images)))
        return logits

    @property
    def stages(self) -> tuple[tuple[str, nn.Module], ...]:
        return (
            ("conv1", self.conv1),
            ("conv2", self.conv2),
            ("fc1", self.fc1),
            ("head", self.fc2),
        )
