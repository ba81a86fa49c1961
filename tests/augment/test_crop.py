"""Crops and flips."""

from __future__ import annotations

import pytest
import torch

from vidi.augment import ImageRandom, from_settings
from vidi.augment_settings import AugmentSettings
from vidi.batch import Batch


def batch_of(count: int, px: int, channels: int = 3) -> Batch:
    images = torch.randint(
        0, 256, (count, px, px, channels), generator=torch.Generator().manual_seed(1)
    )
    return Batch(
        images.to(torch.uint8).permute(0, 3, 1, 2),
        torch.arange(count) % 10,
        torch.arange(count) * 3,
    )


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_a_plan_gives_images_of_its_size_and_leaves_the_batch_alone(crop: str) -> None:
    settings = AugmentSettings.model_validate(
        {
            "image_px": 24,
            "num_classes": 10,
            "crop": crop,
            "crop_padding_px": 3 if crop == "pad" else 0,
            "horizontal_flip": "random",
        }
    )
    batch = batch_of(7, 24 if crop == "pad" else 32)
    before = batch.images.clone()
    out = from_settings(settings)(batch, ImageRandom(0, 0, batch.ids), 0.0)
    assert out.images.shape == (7, 3, 24, 24)
    assert out.images.dtype == torch.uint8
    assert torch.equal(batch.images, before)
