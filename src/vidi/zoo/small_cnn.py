"""A small, fast network for images of 8 to 96 px, trained from scratch.

What it takes from the fastest CIFAR-10 networks (Page 2019, "How to train your ResNet";
hlb-CIFAR10; Jordan 2024, airbench) is what holds for other images too: few layers, each as wide as
it pays, pooling before the norm, smooth activations, a maximum over all positions at the end, and a
first layer that is not learnt but computed from the training images (`SmallCNN.whiten`), so that
what the second one sees is decorrelated from the first step on. docs/measurements.md has what each
of them brought on validation images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Side of the patches that the first layer sees.
_PATCH_PX = 2
# Below this share of the mean variance a direction of the patches is noise, not to be blown up.
_NOISE_SHARE = 5e-4
# Patches that their covariance is taken from; their number is what it costs.
_MAX_PATCHES = 200_000


@final
class ComputedConv2d(nn.Conv2d):
    """A 2 x 2 convolution without padding, whose filters are computed from patches of images.

    As many pairs of filters as a patch has numbers; the two of a pair differ in their sign, because
    an activation lets one half through. They are a buffer, so no optimizer sees them and a
    checkpoint holds them. Until `whiten` is called they are cosines, from slow to fast, of
    brightness before colour.
    """

    weight: Tensor

    def __init__(self, channels: int) -> None:
        directions = channels * _PATCH_PX**2
        super().__init__(channels, 2 * directions, _PATCH_PX)
        shape = self.weight.shape
        del self.weight
        self.register_buffer("weight", torch.zeros(shape))
        steps, over_channels = _cosines(_PATCH_PX), _cosines(channels)
        ordered = sorted(
            (c, down + across, down, across)
            for c in range(channels)
            for down in range(_PATCH_PX)
            for across in range(_PATCH_PX)
        )
        self._set(
            torch.stack(
                [
                    torch.einsum("c,h,w->chw", over_channels[c], steps[down], steps[across])
                    for c, _, down, across in ordered
                ]
            )
        )
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """images (N, C, H, W), normalised: make outputs that are uncorrelated and of variance one.

        The filters are the directions in which patches vary most, each divided by how much.
        """
        patches = F.unfold(images.float(), _PATCH_PX).transpose(1, 2).flatten(0, 1)
        # Evenly over all images, whatever their order.
        patches = patches[:: max(1, len(patches) // _MAX_PATCHES)].double()
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        noise = _NOISE_SHARE * variances.mean().clamp(min=1e-12)
        # eigh sorts upwards: the last ones vary most.
        filters = (directions / (variances + noise).sqrt()).T.flip(0)
        self._set(filters.view(-1, *self.weight.shape[1:]).to(self.weight))

    def _set(self, filters: Tensor) -> None:
        self.weight.copy_(torch.cat((filters, -filters)))


def _cosines(count: int) -> Tensor:
    """(count, count): the orthonormal basis of the discrete cosine transform, slow ones first."""
    angles = torch.arange(count).outer(torch.arange(count) + 0.5) * (math.pi / count)
    basis = angles.cos() * math.sqrt(2.0 / count)
    basis[0] /= math.sqrt(2.0)
    return basis


@final
class _Block(nn.Module):
    """3 x 3 convolution, pooling by two, then another 3 x 3 convolution.

    No shortcut: with filters of a fixed length seven layers train as well without.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / 2, W / 2), rounded down, rounded up below 4."""
        x = self.conv1(x)
        x = F.max_pool2d(x, 2, ceil_mode=min(x.shape[2:]) < 4)
        x = F.gelu(self.bn1(x))
        return F.gelu(self.bn2(self.conv2(x)))


class _SmallNetwork(nn.Module):
    """What one small network and several side by side have in common."""

    head_name = "head"

    stem: ComputedConv2d

    def whiten(self, images: Tensor) -> None:
        """Compute the first layer from a few thousand images (N, C, H, W), normalised."""
        self.stem.whiten(images)

    @property
    def stages(self) -> tuple[tuple[str, nn.Module], ...]:
        names = ("stem", "block1", "block2", "block3", "head")
        return tuple((name, self.get_submodule(name)) for name in names)


@final
class SmallCNN(_SmallNetwork):
    """Stem, three blocks that halve the image, the maximum over all positions, a linear head."""

    def __init__(
        self, *, num_classes: int = 10, channels: int = 3, width: int = 32, dropout: float = 0.0
    ) -> None:
        """width: of the first block; the others are four times as wide."""
        super().__init__()
        self.stem = ComputedConv2d(channels)
        self.block1 = _Block(self.stem.out_channels, width)
        self.block2 = _Block(width, 4 * width)
        self.block3 = _Block(4 * width, 4 * width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width, num_classes)
        # At first no class is likelier than another.
        nn.init.normal_(self.head.weight, std=1 / self.head.in_features)
        nn.init.zeros_(self.head.bias)

    def embed(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> features (N, 4 * width)."""
        x: Tensor = self.block3(self.block2(self.block1(F.gelu(self.stem(images)))))
        # Not `amax`: its gradient goes to the values that equal the maximum, of which a compiled
        # pass, rounding less in between, finds none in bfloat16.
        return x.flatten(2).max(dim=2).values

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W), normalised, H and W at least 8 -> logits (N, num_classes)."""
        logits: Tensor = self.head(self.dropout(self.embed(images)))
        return logits


@final
class _Blocks(nn.ModuleList):
    """The same block of several networks, each for its part; the last may have none."""

    def forward(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [self[number](part) for number, part in enumerate(parts)]


@final
class SmallCNNs(_SmallNetwork):
    """Several small networks side by side, whose mean answers (Hansen and Salamon 1990).

    In training each of them sees its own part of every batch, so a step takes as long as one of
    them does for the whole batch, and they become different enough that their mean errs less than
    one network that is as much wider (docs/measurements.md). They share the computed stem. The head
    is one layer over the features of all, so whatever takes features, a head or a stage of a
    network takes those of this one.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        channels: int = 3,
        width: int = 32,
        networks: int = 2,
        dropout: float = 0.0,
    ) -> None:
        """width: as of `SmallCNN`, of each. networks: how many, 2 or more."""
        super().__init__()
        self.stem = ComputedConv2d(channels)

        def each(inputs: int, outputs: int) -> _Blocks:
            return _Blocks(_Block(inputs, outputs) for _ in range(networks))

        self.block1 = each(self.stem.out_channels, width)
        self.block2 = each(width, 4 * width)
        self.block3 = each(4 * width, 4 * width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(networks * 4 * width, num_classes)
        nn.init.normal_(self.head.weight, std=1 / (4 * width))
        nn.init.zeros_(self.head.bias)

    def embed(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> what all networks say of all of them, (N, networks * 4 * width).

        Divided by their number, so that the head gives the mean of their logits.
        """
        networks = len(self.block1)
        seen = self._seen([F.gelu(self.stem(images))] * networks)
        return torch.cat(seen, dim=1) / networks

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W), normalised, H and W at least 8 -> logits (N, num_classes).

        In training those of each image are one network's.
        """
        if not self.training:
            logits: Tensor = self.head(self.dropout(self.embed(images)))
            return logits
        networks = len(self.block1)
        parts = F.gelu(self.stem(images)).tensor_split(min(networks, len(images)))
        weights = self.head.weight.chunk(networks, dim=1)
        return torch.cat(
            [
                F.linear(self.dropout(features), weights[number], self.head.bias)
                for number, features in enumerate(self._seen(parts))
            ]
        )

    def _seen(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """A part for each network -> its features (n, 4 * width)."""
        return [
            x.flatten(2).max(dim=2).values for x in self.block3(self.block2(self.block1(parts)))
        ]
