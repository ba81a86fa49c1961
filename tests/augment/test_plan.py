"""What the settings ask for is what the transform does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from vidi import augment
from vidi.augment import ImageRandom, Transform, from_settings
from vidi.augment_settings import AugmentSettings
from vidi.batch import Batch
from vidi.testing import check_transform

MakeBatch = Callable[..., Batch]


def settings(**values: Any) -> AugmentSettings:
    return AugmentSettings.model_validate({"image_px": 24, "num_classes": 10, **values})


def results(batch: Batch, *transforms: Transform, done: float = 1.0) -> list[Batch]:
    return [transform(batch, ImageRandom(0, 1, batch.ids), done) for transform in transforms]


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({}, [augment.centre_crop(24)]),
        ({"crop": "pad", "crop_padding_px": 3}, [augment.pad_crop(24, 3)]),
        ({"crop": "resized"}, [augment.random_resized_crop(24)]),
        (
            {"crop": "resized", "crop_scale": (0.5, 0.9), "crop_ratio": (1.0, 2.0)},
            [augment.random_resized_crop(24, (0.5, 0.9), (1.0, 2.0))],
        ),
        (
            {"crop": "resized", "horizontal_flip": "random"},
            [augment.random_resized_crop(24), augment.horizontal_flip()],
        ),
        (
            {"crop": "resized", "horizontal_flip": "alternating"},
            [augment.random_resized_crop(24), augment.alternating_flip()],
        ),
        ({"horizontal_flip": "random"}, [augment.centre_crop(24), augment.horizontal_flip()]),
        (
            {"horizontal_flip": "alternating"},
            [augment.centre_crop(24), augment.alternating_flip()],
        ),
        ({"vertical_flip": True}, [augment.centre_crop(24), augment.vertical_flip()]),
        (
            {"policy": "medium", "grey": True},
            [augment.centre_crop(24), augment.policy("medium", grey=True)],
        ),
        (
            {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "erase_probability": 0.3},
            [
                augment.centre_crop(24),
                augment.random_erasing(0.3),
                augment.mixup_or_cutmix(0.2, 1.0, 10),
            ],
        ),
    ],
)
@pytest.mark.parametrize("px", [24, 30])
def test_each_setting_is_its_transform(
    make_batch: MakeBatch, values: dict[str, Any], steps: list[Transform], px: int
) -> None:
    batch = make_batch(12, px)
    before = batch.images.clone()
    planned, by_hand = results(batch, from_settings(settings(**values)), augment.compose(steps))
    assert torch.equal(planned.images, by_hand.images)
    assert torch.equal(planned.targets, by_hand.targets)
    assert planned.images.shape == (12, 3, 24, 24)
    assert torch.equal(batch.images, before)


def test_one_setting_does_not_move_the_numbers_of_another(make_batch: MakeBatch) -> None:
    batch = make_batch(12, 30)
    both, crop_only = results(
        batch,
        from_settings(settings(crop="resized", horizontal_flip="random")),
        from_settings(settings(crop="resized")),
    )
    same = (both.images == crop_only.images).flatten(1).all(dim=1)
    mirrored = (both.images.flip(3) == crop_only.images).flatten(1).all(dim=1)
    assert (same | mirrored).all()
    assert 2 <= int(same.sum()) <= 10


def test_a_policy_starts_at_half_strength(make_batch: MakeBatch) -> None:
    batch = make_batch(60, 24)
    transform = from_settings(settings(policy="strong"))

    def gap(done: float) -> float:
        (out,) = results(batch, transform, done=done)
        return float((out.images.float() - batch.images.float()).abs().mean())

    assert 0 < gap(0.0) < gap(0.15) < gap(1 / 3)
    assert gap(1 / 3) == gap(1.0)


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_everything_at_once_keeps_the_contract(crop: str) -> None:
    everything = settings(
        crop=crop,
        crop_padding_px=2 if crop == "pad" else 0,
        horizontal_flip="alternating",
        vertical_flip=True,
        policy="strong",
        mixup_alpha=0.2,
        cutmix_alpha=1.0,
        erase_probability=0.5,
    )
    check_transform(from_settings(everything), image_px=24 if crop == "pad" else 32)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"crop_scale": (0.9, 0.5)}, "crop_scale runs from 0.9 down to 0.5"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio runs from 2.0 down to 1.0"),
        ({"crop_padding_px": 4}, "crop_padding_px is only used by crop 'pad', not by 'none'"),
        ({"crop_scale": (0.0, 1.0)}, "greater than 0"),
        ({"erase_probability": 1.5}, "less than or equal to 1"),
        ({"rotate": 5}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(
    values: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        settings(**values)
