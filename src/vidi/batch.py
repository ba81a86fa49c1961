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
    ids: (N,) int64, the sample's index in its Dataset.
    repeats: (N,) int64, how often the sample came up before in this epoch; None where it never does
        twice.
    """

    images: Tensor
    targets: Tensor
    ids: Tensor
    repeats: Tensor | None = None

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def split(self, size: int | Sequence[int]) -> Sequence[Batch]:
        """Views of `size` images each, in order; the last may be smaller. Or of so many each."""
        if isinstance(size, int) and len(self) <= size:
            return (self,)
        cut = size if isinstance(size, int) else list(size)
        images, targets, ids = (
            torch.split(tensor, cut) for tensor in (self.images, self.targets, self.ids)
        )
        repeats = (None,) * len(ids) if self.repeats is None else torch.split(self.repeats, cut)
        return [Batch(*part) for part in zip(images, targets, ids, repeats, strict=True)]

    def to(self, device: torch.device | str) -> Batch:
        """The same on that device; the host does not wait for the copy."""
        if self.images.device == torch.device(device):
            return self
        images, targets, ids = (
            tensor.to(device, non_blocking=True) for tensor in (self.images, self.targets, self.ids)
        )
        repeats = self.repeats
        return Batch(
            images,
            targets,
            ids,
            None if repeats is None else repeats.to(device, non_blocking=True),
        )

    @property
    def keys(self) -> Tensor:
        """(N,) int64: what per-image randomness is keyed by, another one for each repeat."""
        return self.ids if self.repeats is None else self.ids + (self.repeats << _REPEAT_BITS)


# Ids are row numbers, far below this power of two.
_REPEAT_BITS = 40


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of several, in order; a copy unless it is only one."""
    if len(batches) == 1:
        return batches[0]
    repeats = [batch.repeats for batch in batches if batch.repeats is not None]
    return Batch(
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
        torch.cat([batch.ids for batch in batches]),
        torch.cat(repeats) if repeats else None,
    )
