"""What travels from the loader through the augmentations into the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Some images with their targets.

    images: (N, C, H, W), uint8 from the loader, uint8 or float from an augmentation, always in
        0..255; often in channels_last memory format.
    targets: (N,) int64 class numbers, or (N, K) float whose rows sum to 1 after mixing.
    ids: (N,) int64, the sample's index in its Dataset; what per-image randomness is keyed by.
    """

    images: Tensor
    targets: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def split(self, size: int) -> Sequence[Batch]:
        """Views of `size` images each, in order; the last may be smaller."""
        if len(self) <= size:
            return (self,)
        cuts = [torch.split(tensor, size) for tensor in (self.images, self.targets, self.ids)]
        return [Batch(*part) for part in zip(*cuts, strict=True)]


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of several, in order; a copy unless it is only one."""
    if len(batches) == 1:
        return batches[0]
    return Batch(
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
        torch.cat([batch.ids for batch in batches]),
    )
