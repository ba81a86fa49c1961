"""What a transform does to some images, as one picture to look at."""

from __future__ import annotations

import torch
from torch import Tensor

from vidi.augment.random import ImageRandom
from vidi.augment.transform import Transform
from vidi.batch import Batch
from vidi.errors import UsageError

_GAP_PX = 4
_WHITE = 255


def contact_sheet(
    batch: Batch,
    transform: Transform,
    *,
    columns: int = 8,
    seed: int = 0,
    done: float = 1.0,
) -> Tensor:
    """(H, W, 3) uint8: a row for each image of the batch; first as it is, then in `columns` epochs.

    The epochs are 0, 1, ...; `done` is how far training has come, which strength may depend on.
    """
    if not len(batch):
        raise UsageError("there is no image to draw")
    shown = [_drawable(batch.images)]
    for epoch in range(columns):
        changed = transform(batch, ImageRandom(seed, epoch, batch.ids), done)
        shown.append(_drawable(changed.images))
    cell_height = max(images.shape[1] for images in shown)
    cell_width = max(images.shape[2] for images in shown)
    rows = len(batch)
    sheet = torch.full(
        (
            rows * (cell_height + _GAP_PX) + _GAP_PX,
            len(shown) * (cell_width + _GAP_PX) + _GAP_PX,
            3,
        ),
        _WHITE,
        dtype=torch.uint8,
    )
    for column, images in enumerate(shown):
        height, width = images.shape[1:3]
        # In the middle of its cell, for the originals are often larger.
        left = _GAP_PX + column * (cell_width + _GAP_PX) + (cell_width - width) // 2
        for row, image in enumerate(images):
            top = _GAP_PX + row * (cell_height + _GAP_PX) + (cell_height - height) // 2
            sheet[top : top + height, left : left + width] = image
    return sheet


def _drawable(images: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 in main memory."""
    pixels = images.detach().cpu()
    if pixels.dtype != torch.uint8:
        pixels = pixels.to(torch.float32).round().clamp(0, 255).to(torch.uint8)
    count, _channels, height, width = pixels.shape
    return pixels.permute(0, 2, 3, 1).expand(count, height, width, 3)
