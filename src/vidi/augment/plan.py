"""The planned augmentation as one transform."""

from __future__ import annotations

from vidi.augment.crop import (
    alternating_flip,
    centre_crop,
    horizontal_flip,
    pad_crop,
    random_resized_crop,
    vertical_flip,
)
from vidi.augment.transform import Transform, compose
from vidi.augment_settings import AugmentSettings


def from_settings(settings: AugmentSettings) -> Transform:
    """All that the settings ask for, in this order: crop, flips."""
    steps: list[Transform] = []
    match settings.crop:
        case "none":
            steps.append(centre_crop(settings.image_px))
        case "pad":
            steps.append(pad_crop(settings.image_px, settings.crop_padding_px))
        case "resized":
            steps.append(
                random_resized_crop(settings.image_px, settings.crop_scale, settings.crop_ratio)
            )
    # A crop to the size that the images have already hands them on as they are.
    new = settings.crop != "none"
    match settings.horizontal_flip:
        case "none":
            pass
        case "random":
            steps.append(horizontal_flip(in_place=new))
        case "alternating":
            steps.append(alternating_flip(in_place=new))
    if settings.vertical_flip:
        steps.append(vertical_flip(in_place=new))
    return compose(steps)
