"""What travels from the loader through the augmentations into the model."""

from __future__ import annotations

from dataclasses import dataclass

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
