"""AlexNet: the network that won ImageNet in 2012 and started it all.

Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks": the version of
one tower, without local response normalisation. Parameter names and values are torchvision's.
"""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

# Smaller images are not reduced by the first convolution and the first pooling.
SMALL_IMAGE_PX = 96


@final
class AlexNet(nn.Module):
    """Five convolutions, three poolings, two hidden layers of 4,096, a linear head.

    Images below 96 px keep their size through the first convolution and the first pooling, which
    reduce larger ones by eight; the shapes of the weights are the same.
    """

    head_name = "classifier.6"

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        channels: int = 3,
        image_px: int = 224,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        small = image_px < SMALL_IMAGE_PX
        stem = (
            nn.Conv2d(channels, 64, 11, stride=1, padding=5)
            if small
            else nn.Conv2d(channels, 64, 11, stride=4, padding=2)
        )
        self.features = nn.Sequential(
            stem,
            nn.ReLU(inplace=True),
            nn.Identity() if small else nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def embed(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> features (N, 4096)."""
        maps: Tensor = self.avgpool(self.features(images))
        features: Tensor = self.classifier[:6](maps.flatten(1))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W), normalised, H and W at least 8 -> logits (N, num_classes)."""
        logits: Tensor = self.classifier[6](self.embed(images))
        return logits

    @property
    def stages(self) -> tuple[tuple[str, nn.Module], ...]:
        return (
            ("conv1", self.features[0]),
            ("conv2", self.features[3]),
            ("conv3", self.features[6]),
            ("conv4", self.features[8]),
            ("conv5", self.features[10]),
            ("hidden1", self.classifier[1]),
            ("hidden2", self.classifier[4]),
            ("head", self.classifier[6]),
        )
