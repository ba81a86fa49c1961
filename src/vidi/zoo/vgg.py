"""VGG: nothing but 3 x 3 convolutions, doubled in width where pooling halves the image.

Simonyan and Zisserman 2015, "Very deep convolutional networks for large-scale image recognition",
with and without batch norm. Parameter names and values are torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

_WIDTHS = (64, 128, 256, 512, 512)
# The last maps should have this many positions on a side at least; see `VGG`.
_MIN_MAP_PX = 2


@final
class VGG(nn.Module):
    """Five stages of convolutions, each ended by pooling, two hidden layers of 4,096, a head.

    The five poolings reduce by 32. For images below 64 px so many of the first ones are left out
    that maps of 2 px or more remain: one for 32 px, two for 28 px.
    """

    head_name = "classifier.6"

    def __init__(
        self,
        *,
        depths: Sequence[int],
        batch_norm: bool = False,
        num_classes: int = 1000,
        channels: int = 3,
        image_px: int = 224,
        dropout: float = 0.5,
    ) -> None:
        """depths: convolutions of each of the five stages."""
        super().__init__()
        left_out = 0
        while left_out < len(depths) and image_px >> (len(depths) - left_out) < _MIN_MAP_PX:
            left_out += 1
        layers: list[nn.Module] = []
        self._ends = []
        inputs = channels
        for index, (depth, width) in enumerate(zip(depths, _WIDTHS, strict=True)):
            for _ in range(depth):
                layers.append(nn.Conv2d(inputs, width, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                inputs = width
            # An identity keeps the numbers of the layers after it, which are in their names.
            layers.append(nn.Identity() if index < left_out else nn.MaxPool2d(2))
            self._ends.append(len(layers))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def embed(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> features (N, 4096)."""
        maps: Tensor = self.avgpool(self.features(images))
        features: Tensor = self.classifier[:5](maps.flatten(1))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W), normalised, H and W at least 8 -> logits (N, num_classes)."""
        logits: Tensor = self.classifier[5:](self.embed(images))
        return logits

    @property
    def stages(self) -> tuple[tuple[str, nn.Module], ...]:
        starts = [0, *self._ends]
        stages = tuple(
            (f"stage{index + 1}", self.features[start:end])
            for index, (start, end) in enumerate(zip(starts[:-1], self._ends, strict=True))
        )
        return (
            *stages,
            ("hidden1", self.classifier[0]),
            ("hidden2", self.classifier[3]),
            ("head", self.classifier[6]),
        )
