"""The contact sheet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vidi.augment import ImageRandom, contact_sheet, random_resized_crop
from vidi.batch import Batch
from vidi.errors import UsageError

MakeBatch = Callable[..., Batch]


def test_a_sheet_has_the_original_and_a_picture_for_each_epoch(make_batch: MakeBatch) -> None:
    batch = make_batch(3, 40)
    transform = random_resized_crop(32)
    sheet = contact_sheet(batch, transform, columns=4, seed=9)
    assert sheet.shape == (3 * 44 + 4, 5 * 44 + 4, 3)
    assert sheet.dtype == torch.uint8
    assert (sheet[:4] == 255).all()
    for row in range(3):
        top = 4 + 44 * row
        original = sheet[top : top + 40, 4:44]
        assert torch.equal(original, batch.images[row].permute(1, 2, 0))
    for epoch in range(4):
        images = transform(batch, ImageRandom(9, epoch, batch.ids), 1.0).images
        left = 4 + 44 * (epoch + 1) + 4
        assert torch.equal(sheet[8:40, left : left + 32], images[0].permute(1, 2, 0))


def test_grey_and_float_images_can_be_drawn(make_batch: MakeBatch) -> None:
    batch = make_batch(2, 12, 1)

    def halves(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del rng, done
        return Batch(batch.images.float() + 0.6, batch.targets, batch.ids)

    sheet = contact_sheet(batch, halves, columns=1)
    assert torch.equal(sheet[4:16, 4:16, 2], batch.images[0, 0])
    expected = (batch.images[0, 0].int() + 1).clamp(max=255)
    assert torch.equal(sheet[4:16, 20:32, 1].int(), expected)


def test_an_empty_sheet_is_refused() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    empty = Batch(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), nothing, nothing)
    with pytest.raises(UsageError, match="no image to draw"):
        contact_sheet(empty, random_resized_crop(4))
